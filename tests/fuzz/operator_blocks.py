"""Operators between the layers of random models: each function adds nodes behind a value, or returns None."""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import Graph
from onnx import TensorProto, helper


def pad(g: Graph, attributes: dict[str, Any], axes: int, kernel: list[int]) -> None:
    kind = g.rng.random()
    if kind < 0.2:
        attributes["auto_pad"] = g.pick("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
    elif kind < 0.5:
        attributes["pads"] = [size // 2 for size in kernel] * 2
    elif kind < 0.75:
        attributes["pads"] = [int(g.rng.integers(0, 3)) for _ in range(2 * axes)]


def clip(g: Graph, x: str) -> str | None:
    low, high = g.pick(
        (0.0, 6.0), (0.0, 1.0), (-1.0, 1.0), (None, 0.5), (0.0, None), (-0.5, None), (None, None), (0.3, 2.0)
    )
    if g.opset < 11:
        limits = {name: value for name, value in (("min", low), ("max", high)) if value is not None}
        return g.add("Clip", [x], **limits)
    reads = [x] + ["" if value is None else g.constant(np.float32(value)) for value in (low, high)]
    while reads[-1] == "":
        reads.pop()
    return g.add("Clip", reads)


def activation(g: Graph, x: str) -> str | None:
    kind = g.rng.random()
    if kind < 0.4:
        return g.add("Relu", [x])
    if kind < 0.6:
        return clip(g, x)
    op, attributes, least = g.pick(
        ("LeakyRelu", {"alpha": 0.1}, 9), ("Sigmoid", {}, 9), ("HardSigmoid", {}, 9), ("HardSwish", {}, 14),
        ("Tanh", {}, 9), ("Elu", {}, 9), ("Softplus", {}, 9), ("Erf", {}, 9), ("Abs", {}, 9),
        ("Neg", {}, 9),
        ("Gelu", {}, 20), ("Gelu", {"approximate": "tanh"}, 20), ("Mish", {}, 18), ("Softsign", {}, 9),
        ("Selu", {}, 9), ("Celu", {}, 12), ("ThresholdedRelu", {}, 10), ("Swish", {}, 24),
        ("Identity", {}, 9), ("Dropout", {}, 9), ("Exp", {}, 9), ("Sin", {}, 9),
    )  # fmt: skip
    return None if g.opset < least else g.add(op, [x], **attributes)


def prelu(g: Graph, x: str) -> str | None:
    shape = g.shape(x)
    if len(shape) < 2:
        return None
    slope = (shape[1],) + (1,) * (len(shape) - 2)
    return g.add("PRelu", [x, g.constant(g.normal(*g.pick(slope, (1,)), scale=0.2))])


def scalar(g: Graph, value: float) -> str:
    return g.constant(np.full(g.pick((), (), (1,), (1, 1)), value, np.float32))


def chain(g: Graph, *steps: tuple[str, list[str | int]]) -> str | None:
    """Add nodes of which each may read the results of those before, by index."""
    made: list[str] = []
    for op, reads in steps:
        y = g.add(op, [made[read] if isinstance(read, int) else read for read in reads])
        if y is None:
            return None
        made.append(y)
    return made[-1]


def gelu(g: Graph, x: str) -> str | None:
    """GELU as exporters write it, in the forms of erf and tanh, with factors in either place."""
    one, half = scalar(g, 1), scalar(g, 0.5)
    if g.chance(0.6):
        first: tuple[str, list[str | int]] = ("Div", [x, scalar(g, 2**0.5)])
        if g.chance(0.4):
            first = ("Mul", [x, scalar(g, 2**-0.5)])
        if g.chance(0.5):
            return chain(g, first, ("Erf", [0]), ("Add", [1, one]), ("Mul", [x, 2]), ("Mul", [3, half]))
        return chain(g, first, ("Erf", [0]), ("Add", [1, one]), ("Mul", [x, half]), ("Mul", [3, 2]))
    return chain(
        g, ("Pow", [x, scalar(g, 3)]), ("Mul", [0, scalar(g, 0.044715)]), ("Add", [x, 1]),
        ("Mul", [2, scalar(g, (2 / np.pi) ** 0.5)]), ("Tanh", [3]), ("Add", [4, one]), ("Mul", [x, 5]),
        ("Mul", [6, half]),
    )  # fmt: skip


def gate(g: Graph, x: str) -> str | None:
    op = g.pick("Sigmoid", "HardSigmoid", "Tanh", "Softplus")
    return chain(g, (op, [x]), ("Mul", [x, 0] if g.chance(0.5) else [0, x]))


def scalar_arithmetic(g: Graph, x: str) -> str | None:
    op = g.pick("Add", "Mul", "Sub", "Div", "Pow", "Max", "Min")
    value = scalar(g, float(g.pick(0.5, 2.0, 1.0, -1.0, 3.0, 0.0)))
    return g.add(op, [x, value] if g.chance(0.7) else [value, x])


def _other(g: Graph, x: str) -> str:
    """Return a second operand: a value of equal, smaller or broadcasting axes, a new input, or a constant."""
    shape, kind = g.shape(x), g.rng.random()
    if kind < 0.35:
        fitting = [name for name in g.reals if g.shape(name) == shape and name != x]
        if fitting:
            return g.pick(*fitting)
    cut = tuple(1 if g.chance(0.3) else size for size in shape)[int(g.rng.integers(0, len(shape) + 1)) :]
    if kind < 0.5:
        fitting = [name for name in g.reals if name != x and _broadcasts(g.shape(name), shape)]
        if fitting:
            return g.pick(*fitting)
    if kind < 0.65 and len(g.inputs) < 4 and shape:
        return g.new_input(g.pick(shape, cut or shape))
    if kind < 0.7:
        return x
    return g.constant(
        g.normal(
            *g.pick(cut, shape, shape[-1:], (shape[1], *(1,) * (len(shape) - 2)) if len(shape) > 1 else shape)
        )
    )


def _broadcasts(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(one, other)
    except ValueError:
        return False
    return True


def binary(g: Graph, x: str) -> str | None:
    op = g.pick("Add", "Add", "Add", "Mul", "Mul", "Sub", "Max", "Min", "Div")
    other = _other(g, x)
    return g.add(op, [x, other] if g.chance(0.6) else [other, x])


def add_many(g: Graph, x: str) -> str | None:
    return g.add(
        g.pick("Sum", "Mean", "Max", "Min"), [x, _other(g, x), _other(g, x)][: int(g.rng.integers(1, 4))]
    )


def concat(g: Graph, x: str) -> str | None:
    shape = g.shape(x)
    if not shape:
        return None
    axis = int(g.rng.integers(0, len(shape)))

    def fits(name: str) -> bool:
        other = g.shape(name)
        return len(other) == len(shape) and all(
            a == b for i, (a, b) in enumerate(zip(other, shape, strict=True)) if i != axis
        )

    parts = [x] + [
        g.pick(*[name for name in g.reals if fits(name)] or [x]) for _ in range(int(g.rng.integers(0, 3)))
    ]
    if g.chance(0.15):
        cut = list(shape)
        cut[axis] = int(g.rng.integers(1, 4))
        parts.append(g.constant(g.normal(*cut)))
    g.rng.shuffle(parts)
    return g.add("Concat", parts, axis=axis - len(shape) if g.opset >= 11 and g.chance(0.3) else axis)


def pool(g: Graph, x: str) -> str | None:
    """Pools of every kind: padding, ceil_mode, count_include_pad, dilations, auto_pad."""
    axes = len(g.shape(x)) - 2
    if axes < 1:
        return None
    op = g.pick("MaxPool", "AveragePool")
    if g.chance(0.2):
        return g.add(g.pick("GlobalAveragePool", "GlobalAveragePool", "GlobalMaxPool"), [x])
    kernel = [int(g.pick(1, 2, 2, 3)) for _ in range(axes)]
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    if g.chance(0.6):
        attributes["strides"] = [int(g.pick(1, 2, 2, 3)) for _ in range(axes)]
    pad(g, attributes, axes, kernel)
    if g.opset >= 10 and g.chance(0.35):
        attributes["ceil_mode"] = 1
    if op == "AveragePool" and g.chance(0.35):
        attributes["count_include_pad"] = 1
    if g.chance(0.1) and g.opset >= (10 if op == "MaxPool" else 19):
        attributes["dilations"] = [int(g.pick(1, 2)) for _ in range(axes)]
    if op == "MaxPool" and g.chance(0.05):
        found = g.add(op, [x], 2, **attributes)
        return None if found is None else found[0]
    return g.add(op, [x], **attributes)


def axes_form(g: Graph, op: str, x: str, axes: list[int], since: int, **attributes: Any) -> str | None:
    """Add an operator whose axes are an attribute before an opset, and an input from then on."""
    if g.opset < since:
        return g.add(op, [x], axes=axes, **attributes)
    return g.add(op, [x, g.constant(np.array(axes, np.int64))], **attributes)


def layout(g: Graph, x: str) -> str | None:
    shape = g.shape(x)
    rank, kind = len(shape), g.pick("transpose", "reshape", "flatten", "squeeze", "unsqueeze", "reshape0")
    if kind == "transpose" and rank > 1:
        if g.chance(0.1):
            return g.add("Transpose", [x])
        return g.add("Transpose", [x], perm=[int(axis) for axis in g.rng.permutation(rank)])
    if kind == "flatten" and rank > 1:
        axis = int(g.rng.integers(0, rank + 1))
        return g.add("Flatten", [x], **({} if axis == 1 else {"axis": axis}))
    if kind == "squeeze" and (ones := [axis for axis in range(1, rank) if shape[axis] == 1]):
        axis = int(g.pick(*ones))
        negative = axis - rank if g.opset >= 11 and g.chance(0.3) else axis
        return axes_form(g, "Squeeze", x, [negative], 13)
    if kind == "unsqueeze" and rank < 5:
        return axes_form(g, "Unsqueeze", x, [int(g.rng.integers(0, rank + 1))], 13)
    if rank < 2 or not shape[-1]:
        return None
    if kind == "reshape0":
        start = int(g.rng.integers(0, rank - 1))
        wanted = [*([0] * start), -1]
        return g.add("Reshape", [x, g.constant(np.array(wanted, np.int64))])
    last = shape[-1]
    parts = [d for d in range(1, last + 1) if last % d == 0]
    split = int(g.pick(*parts))
    wanted = [0] * (rank - 1) + [split, last // split]
    wanted[0] = g.pick(-1, 0, shape[0])
    return g.add("Reshape", [x, g.constant(np.array(wanted, np.int64))])


def reduce(g: Graph, x: str) -> str | None:
    shape = g.shape(x)
    if len(shape) < 2:
        return None
    op = g.pick("ReduceMean", "ReduceMean", "ReduceMean", "ReduceSum", "ReduceMax")
    axes = [2, 3] if len(shape) == 4 and g.chance(0.6) else [int(g.rng.integers(1, len(shape)))]
    if g.opset >= 11 and g.chance(0.3):
        axes = [axis - len(shape) for axis in axes]
    return axes_form(g, op, x, axes, 13 if op == "ReduceSum" else 18, keepdims=int(g.pick(0, 1)))


def softmax(g: Graph, x: str) -> str | None:
    rank = len(g.shape(x))
    if rank < 1:
        return None
    attributes = (
        {}
        if g.chance(0.4)
        else {"axis": int(g.rng.integers(0, rank)) - (rank if g.opset >= 11 and g.chance(0.4) else 0)}
    )
    y: str | None = x
    if g.chance(0.3):
        y = g.add("Mul", [x, scalar(g, 0.3)]) or x
    if g.chance(0.3):
        width = g.shape(y)[-1]
        mask = np.where(g.rng.random(g.pick((width,), (1, width), (1,), g.shape(y))) < 0.2, -1e4, 0).astype(
            np.float32
        )
        y = g.add("Add", [y, g.constant(mask)]) or y
    return g.add(g.pick("Softmax", "Softmax", "Softmax", "LogSoftmax"), [y], **attributes)


def layer_norm(g: Graph, x: str) -> str | None:
    shape = g.shape(x)
    if len(shape) < 2 or shape[-1] < 2:
        return None
    width = shape[-1]
    gain, shift = g.constant(g.normal(width) + 1), g.constant(g.normal(width, scale=0.1))
    if g.opset >= 17 and g.chance(0.7):
        axis = g.pick(-1, -1, -1, len(shape) - 1, 1)
        if axis == 1 and len(shape) > 2:
            tail = shape[1:]
            gain, shift = g.constant(g.normal(*tail) + 1), g.constant(g.normal(*tail))
        reads = [x, gain, shift] if g.chance(0.8) else [x, gain]
        return g.add("LayerNormalization", reads, axis=axis, epsilon=float(g.pick(1e-5, 1e-3)))
    mean = axes_form(g, "ReduceMean", x, [-1] if g.opset >= 11 else [len(shape) - 1], 18, keepdims=1)
    centred = None if mean is None else g.add("Sub", [x, mean])
    square = None if centred is None else g.add("Pow", [centred, scalar(g, 2)])
    if square is None:
        return None
    variance = axes_form(g, "ReduceMean", square, [-1] if g.opset >= 11 else [len(shape) - 1], 18, keepdims=1)
    if variance is None:
        return None
    assert centred is not None
    return chain(
        g,
        ("Add", [variance, scalar(g, 1e-5)]),
        ("Sqrt", [0]),
        ("Div", [centred, 1]),
        ("Mul", [2, gain]),
        ("Add", [3, shift]),
    )


def batch_norm(g: Graph, x: str) -> str | None:
    shape = g.shape(x)
    if len(shape) < 2:
        return None
    channels = shape[1]
    mean, variance = g.normal(channels), np.abs(g.normal(channels)) + 0.1
    reads = [
        x,
        *(g.constant(array) for array in (g.normal(channels) + 1, g.normal(channels), mean, variance)),
    ]
    attributes: dict[str, Any] = {"epsilon": float(g.pick(1e-5, 1e-3))}
    if g.opset >= 14 and g.chance(0.04):
        found = g.add("BatchNormalization", reads, 3, training_mode=1, **attributes)
        return None if found is None else found[0]
    return g.add("BatchNormalization", reads, **attributes)


def other_norm(g: Graph, x: str) -> str | None:
    shape = g.shape(x)
    if len(shape) < 3:
        return None
    channels = shape[1]
    reads = [x, g.constant(g.normal(channels) + 1), g.constant(g.normal(channels))]
    if g.opset >= 21 and g.chance(0.5):
        return g.add("GroupNormalization", reads, num_groups=channels)
    return g.add("InstanceNormalization", reads)


def conditional(g: Graph, x: str) -> str | None:
    """A subgraph that is chosen by data, by an input, or by a constant; at times with a layer in it."""
    kind = g.rng.random()
    if kind < 0.5:
        mean = g.add("ReduceMax", [x], keepdims=0)
        condition = (
            None
            if mean is None
            else g.add("Greater", [mean, g.constant(np.float32(g.pick(-9, 0, 9)), plain=True)])
        )
    elif kind < 0.8:
        condition = g.input((), [], lambda size: np.array(bool(g.rng.random() < 0.5)), TensorProto.BOOL)
    else:
        condition = g.constant(np.array(g.chance(0.5)), plain=True)
    if condition is None:
        return None
    width = g.shape(x)[-1] if g.shape(x) else 1
    branches = []
    for _ in range(2):
        out, choice = g.name("b"), g.rng.random()
        if choice < 0.3 and len(g.shape(x)) >= 2:
            weight = g.constant(g.normal(width, width, scale=width**-0.5), plain=True)
            nodes = [helper.make_node("MatMul", [x, weight], [out], name=f"inner{out}")]
        elif choice < 0.8:
            nodes = [helper.make_node(g.pick("Relu", "Neg", "Sigmoid", "Identity"), [x], [out])]
        else:
            nodes = [helper.make_node("Add", [x, x], [out])]
        info = helper.make_tensor_value_info(
            out, TensorProto.FLOAT, [f"{out}_{i}" for i in range(len(g.shape(x)))]
        )
        branches.append(helper.make_graph(nodes, f"branch{out}", [], [info]))
    node = helper.make_node("If", [condition], [g.name()], then_branch=branches[0], else_branch=branches[1])
    return g.add_node(node)


def pieces(g: Graph, x: str) -> str | None:
    """Split, slice, pad, gather, resize, cast: what stands between layers and is left to onnxruntime."""
    shape = g.shape(x)
    rank, kind = (
        len(shape),
        g.pick("split", "slice", "pad", "gather", "resize", "cast", "where", "depth", "einsum", "expand"),
    )
    if rank < 2:
        return None
    axis = int(g.rng.integers(1, rank))
    if kind == "split" and shape[axis] >= 2:
        sizes = [1, shape[axis] - 1]
        if g.opset < 13:
            found = g.add("Split", [x], 2, axis=axis, split=sizes)
        else:
            found = g.add("Split", [x, g.constant(np.array(sizes, np.int64))], 2, axis=axis)
        if found is None:
            return None
        g.reals.append(found[0])
        return found[1]
    if kind == "slice" and shape[axis] >= 2:
        if g.opset < 10:
            return g.add("Slice", [x], axes=[axis], starts=[1], ends=[shape[axis]])
        limits = [np.array([value], np.int64) for value in (1, 2**31, axis, g.pick(1, 2))]
        return g.add("Slice", [x, *(g.constant(limit) for limit in limits)])
    if kind == "pad":
        pads = [0] * (2 * rank)
        for index in range(1 if rank < 3 else 2, rank):
            pads[index], pads[index + rank] = int(g.rng.integers(0, 3)), int(g.rng.integers(0, 3))
        mode = g.pick("constant", "constant", "reflect", "edge")
        if g.opset < 11:
            return g.add("Pad", [x], pads=pads, mode=mode)
        return g.add("Pad", [x, g.constant(np.array(pads, np.int64))], mode=mode)
    if kind == "gather" and shape[axis]:
        index = np.array(g.rng.integers(0, shape[axis], g.pick((), (2,))), np.int64)
        return g.add("Gather", [x, g.constant(index)], axis=axis)
    if kind == "resize" and rank == 4 and g.opset >= 11:
        scales = g.constant(np.array([1, 1, g.pick(1, 2), 2], np.float32))
        roi = "" if g.opset >= 13 else g.constant(np.zeros(0, np.float32))
        mode = {
            "mode": g.pick("nearest", "nearest", "linear"),
            "coordinate_transformation_mode": g.pick("asymmetric", "half_pixel"),
        }
        if mode["mode"] == "nearest":
            mode["nearest_mode"] = g.pick("floor", "round_prefer_floor")
        return g.add("Resize", [x, roi, scales], **mode)
    if kind == "cast":
        y = g.add(
            "Cast",
            [x],
            to=g.pick(TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.FLOAT),
        )
        return None if y is None else g.add("Cast", [y], to=TensorProto.FLOAT)
    if kind == "where":
        mask = g.constant(g.rng.random(shape[-1:]) < 0.7)
        return g.add("Where", [mask, x, scalar(g, float(g.pick(0, -1)))])
    if kind == "depth" and rank == 4 and shape[1] % 4 == 0:
        return g.add("DepthToSpace", [x], blocksize=2)
    if kind == "einsum" and rank == 2 and g.opset >= 12:
        return g.add("Einsum", [x, g.constant(g.normal(shape[-1], 3, scale=0.3))], equation="ij,jk->ik")
    if kind == "expand":
        wanted = [1] * rank
        wanted[axis] = shape[axis] if shape[axis] > 1 else 3
        return g.add("Expand", [x, g.constant(np.array(wanted, np.int64))])
    return None


def contributed(g: Graph, x: str) -> str | None:
    """Operators of com.microsoft, as optimizers leave them between layers."""
    shape = g.shape(x)
    if not g.chance(0.3) or len(shape) < 2:
        return None
    kind = g.pick("QuickGelu", "FastGelu", "BiasGelu", "Gelu")
    reads = [x, g.constant(g.normal(shape[-1]))] if kind == "BiasGelu" else [x]
    return g.add(kind, reads, domain="com.microsoft")
