"""Layers of random models, and blocks of them: each function adds nodes behind a value, or returns None."""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import Graph
from operator_blocks import activation, batch_norm, clip, pad, pool, scalar


def conv(g: Graph, x: str) -> str | None:
    """Convolutions along one to three axes: groups, depthwise, strides, dilations, all kinds of padding."""
    shape = g.shape(x)
    axes = len(shape) - 2
    if axes < 1 or (axes != 2 and g.chance(0.7)):
        return None
    channels = shape[1]
    divisors = [d for d in range(1, channels + 1) if channels % d == 0]
    groups = g.pick(1, 1, 1, channels, *divisors)
    outputs = groups * int(g.rng.integers(1, max(2, 20 // groups)))
    kernel = [int(g.pick(1, 1, 2, 3, 3)) for _ in range(axes)]
    attributes: dict[str, Any] = {}
    if g.chance(0.4):
        attributes["strides"] = [int(g.pick(1, 2, 3)) for _ in range(axes)]
    if g.chance(0.25):
        attributes["dilations"] = [int(g.pick(1, 2)) for _ in range(axes)]
    pad(g, attributes, axes, kernel)
    if groups > 1 or g.chance(0.2):
        attributes["group"] = groups
    if g.chance(0.8):
        attributes["kernel_shape"] = kernel
    inside = channels // groups
    reads = [x, g.weight(outputs, inside, *kernel, reduction=inside * int(np.prod(kernel)))]
    if g.chance(0.6):
        reads.append(g.constant(g.normal(outputs, scale=g.pick(0.1, 1.0, 20.0))))
    return g.add("Conv", reads, **attributes)


def conv_transpose(g: Graph, x: str) -> str | None:
    shape = g.shape(x)
    if len(shape) != 4:
        return None
    outputs = int(g.rng.integers(1, 8))
    weight = g.weight(shape[1], outputs, 2, 2, reduction=4 * shape[1])
    return g.add("ConvTranspose", [x, weight], strides=[g.pick(1, 2), 2])


def matmul(g: Graph, x: str) -> str | None:
    """A constant on the right, of one to three axes, or on the left."""
    shape = g.shape(x)
    if len(shape) < 2:
        return None
    kind, outputs = g.rng.random(), int(g.rng.integers(1, 21))
    if kind < 0.72:
        weight = g.weight(shape[-1], outputs, reduction=shape[-1])
        reads = [x, weight]
    elif kind < 0.8:
        batch = (g.pick(1, shape[0], shape[-3] if len(shape) > 2 else 1, 2),)
        if g.chance(0.3):
            batch = (1, *batch)
        reads = [x, g.weight(*batch, shape[-1], outputs, reduction=shape[-1])]
    elif kind < 0.82:
        reads = [x, g.weight(shape[-1], reduction=shape[-1])]
    else:
        batch = (1,) if g.chance(0.2) else ()
        reads = [g.weight(*batch, outputs, shape[-2], reduction=shape[-2]), x]
    y = g.add("MatMul", reads)
    if y is not None and g.chance(0.6):
        width = g.shape(y)[-1] if g.shape(y) else 1
        bias = g.constant(
            g.normal(*g.pick((width,), (width,), (width,), (1,), (), (1, width), (1, 1, width)))
        )
        y = g.add("Add", [y, bias] if g.chance(0.7) else [bias, y]) or y
    return y


def gemm(g: Graph, x: str) -> str | None:
    """Every form of Gemm: transposed either way, factors, and biases of every shape that broadcasts."""
    if len(g.shape(x)) != 2:
        y = g.add("Flatten", [x], axis=1) if len(g.shape(x)) > 2 else None
        return None if y is None else gemm(g, y)
    transposed_a = g.chance(0.08)
    reduction = g.shape(x)[0 if transposed_a else 1]
    rows, outputs = g.shape(x)[1 if transposed_a else 0], int(g.rng.integers(1, 21))
    transposed = g.chance(0.5)
    weight = g.weight(*((outputs, reduction) if transposed else (reduction, outputs)), reduction=reduction)
    attributes: dict[str, Any] = {}
    if transposed:
        attributes["transB"] = 1
    if transposed_a:
        attributes["transA"] = 1
    for name in ("alpha", "beta"):
        if g.chance(0.1):
            attributes[name] = float(g.pick(0.5, 2.0, -1.0, 0.0))
    reads = [x, weight]
    if g.chance(0.8) or g.opset < 11:
        shape = g.pick(
            (outputs,), (outputs,), (outputs,), (1,), (), (1, outputs), (1, 1), (rows, 1), (rows, outputs)
        )
        reads.append(g.constant(g.normal(*shape)))
        if g.chance(0.05) and (other := _same_shape(g, (rows, outputs))) is not None:
            reads[2] = other
    return g.add("Gemm", reads, **attributes)


def _same_shape(g: Graph, shape: tuple[int, ...]) -> str | None:
    found = [name for name in g.reals if g.shape(name) == shape]
    return g.pick(*found) if found else None


LAYERS = (conv, matmul, gemm)


def layer(g: Graph, x: str) -> str | None:
    return g.pick(*(LAYERS if len(g.shape(x)) == 2 else (conv, conv, matmul, gemm)))(g, x)


def residual(g: Graph, x: str) -> str | None:
    """A block of one or two layers around which its input goes."""
    y: str | None = x
    for _ in range(int(g.rng.integers(1, 3))):
        y = layer(g, y) if y is not None else None
        if y is not None and g.chance(0.5):
            y = activation(g, y)
    if y is None:
        return None
    around: str | None = x
    if g.shape(y) != g.shape(x) and g.chance(0.8):
        around = _projected(g, x, g.shape(y))
    if around is None:
        return y
    sum_ = g.add(g.pick("Add", "Add", "Add", "Mul"), [y, around] if g.chance(0.5) else [around, y])
    if sum_ is not None and g.chance(0.5):
        return activation(g, sum_) or sum_
    return sum_ or y


def _projected(g: Graph, x: str, shape: tuple[int, ...]) -> str | None:
    """Return a layer of a value that has another shape, or None."""
    own = g.shape(x)
    if len(own) == 4 and len(shape) == 4:
        kernel = [max(1, a - b + 1) for a, b in zip(own[2:], shape[2:], strict=True)]
        return g.add("Conv", [x, g.weight(shape[1], own[1], *kernel, reduction=own[1])])
    if own[:-1] == shape[:-1]:
        return g.add("MatMul", [x, g.weight(own[-1], shape[-1], reduction=own[-1])])
    return None


def plain_layer(g: Graph, x: str, outputs: int) -> str | None:
    """A layer that keeps all axes but one: a convolution of one pixel, or a matrix product."""
    shape = g.shape(x)
    if len(shape) == 4:
        return g.add("Conv", [x, g.weight(outputs, shape[1], 1, 1, reduction=shape[1])])
    if len(shape) < 2:
        return None
    op = "Gemm" if len(shape) == 2 and g.chance(0.5) else "MatMul"
    return g.add(op, [x, g.weight(shape[-1], outputs, reduction=shape[-1])])


def branches(g: Graph, x: str) -> str | None:
    """Layers of two values, joined; the second's axes are those of the first, or 1, and its batch is open."""
    shape, outputs = g.shape(x), int(g.rng.integers(1, 17))
    other = x
    if g.chance(0.7) and len(g.inputs) < 4 and len(shape) >= 2:
        fixed = 1 if len(shape) == 4 else len(shape) - 1
        small = g.chance(0.5)
        sizes = [1 if axis != fixed and small and g.chance(0.6) else size for axis, size in enumerate(shape)]
        cut = int(g.rng.integers(0, len(shape) - 1)) if len(shape) == 3 and g.chance(0.3) else 0
        other = g.new_input(sizes[cut:])
    y, z = plain_layer(g, x, outputs), plain_layer(g, other, outputs if g.chance(0.85) else 1)
    if y is None or z is None:
        return None
    for _ in range(2):
        if g.chance(0.3):
            y, z = (activation(g, y) or y), z
        y, z = z, y
    operands = [y, z] if g.chance(0.5) else [z, y]
    if g.chance(0.2):
        joined = g.add("Concat", operands, axis=1)
    else:
        joined = g.add(g.pick("Add", "Add", "Add", "Mul"), operands)
    if joined is not None and g.chance(0.5):
        joined = activation(g, joined) or joined
    return joined if joined is None or g.chance(0.4) else (layer(g, joined) or joined)


def joined(g: Graph, x: str) -> str | None:
    """Layers of one value, and the value itself, concatenated; a pool or a function; and a layer."""
    parts = [x] if g.chance(0.4) else []
    for _ in range(int(g.rng.integers(1, 4))):
        y = plain_layer(g, x, int(g.rng.integers(1, 9)))
        if y is not None and g.chance(0.6):
            y = activation(g, y) or y
        parts += [] if y is None else [y]
    axis = 1 if len(g.shape(x)) == 4 else len(g.shape(x)) - 1
    y = g.add("Concat", parts, axis=axis) if parts else None
    for step in (pool, activation):
        if y is not None and g.chance(0.3):
            y = step(g, y) or y
    return None if y is None else (layer(g, y) or y)


def pooled(g: Graph, x: str) -> str | None:
    """A layer, a pool, bounds and functions in any order, and a layer that reads integers."""
    y = conv(g, x) if len(g.shape(x)) == 4 else None
    steps = [pool, clip, activation, pool, clip]
    for _ in range(int(g.rng.integers(1, 4))):
        y = None if y is None else (g.pick(*steps)(g, y) or y)
    return None if y is None else (layer(g, y) or y)


def conv_bn_relu(g: Graph, x: str) -> str | None:
    y = conv(g, x)
    y = None if y is None else (batch_norm(g, y) or y)
    return None if y is None else (activation(g, y) or y)


def attention(g: Graph, x: str) -> str | None:
    """Products of queries, keys and values of one sequence, in heads or not, with a mask or not."""
    shape = g.shape(x)
    if len(shape) != 3 or shape[-1] < 2:
        return None
    width = g.pick(2, 4, 8)
    parts = []
    for _ in range(3):
        y = g.add("MatMul", [x, g.weight(shape[-1], width, reduction=shape[-1])])
        if y is not None and g.chance(0.7):
            y = g.add("Add", [y, g.constant(g.normal(width))])
        if y is None:
            return None
        parts.append(y)
    heads = g.pick(0, 1, 2)
    if heads:
        form = g.constant(np.array([0, -1, heads, width // heads], np.int64))
        turned = []
        for index, part in enumerate(parts):
            y = g.add("Reshape", [part, form])
            y = (
                None
                if y is None
                else g.add("Transpose", [y], perm=[0, 2, 3, 1] if index == 1 else [0, 2, 1, 3])
            )
            if y is None:
                return None
            turned.append(y)
        query, key, value = turned
    else:
        query, value = parts[0], parts[2]
        key = g.add("Transpose", [parts[1]], perm=[0, 2, 1])
    scores = g.add("MatMul", [query, key])
    if scores is None:
        return None
    scores = g.add(g.pick("Mul", "Div"), [scores, scalar(g, 2.0)]) or scores
    if g.chance(0.3):
        length = shape[1]
        mask = np.where(
            g.rng.random(g.pick((length,), (1, length), (1, 1, length))) < 0.2, g.pick(-1e4, -1e9), 0
        )
        mask[..., 0] = 0
        scores = g.add("Add", [scores, g.constant(mask.astype(np.float32))]) or scores
    weights = g.add("Softmax", [scores], axis=-1 if g.opset >= 11 else len(g.shape(scores)) - 1)
    y = None if weights is None else g.add("MatMul", [weights, value])
    if heads and y is not None:
        y = g.add("Transpose", [y], perm=[0, 2, 1, 3])
        y = None if y is None else g.add("Reshape", [y, g.constant(np.array([0, -1, width], np.int64))])
    if y is None:
        return None
    y = g.add("MatMul", [y, g.weight(width, shape[-1], reduction=width)]) or y
    return g.add("Add", [x, y]) or y


def product_of_two(g: Graph, x: str) -> str | None:
    """A matrix product of two computed values."""
    shape = g.shape(x)
    if len(shape) < 2:
        return None
    fitting = [name for name in g.reals if len(g.shape(name)) >= 2 and g.shape(name)[-2] == shape[-1]]
    if fitting:
        return g.add("MatMul", [x, g.pick(*fitting)])
    turned = g.add("Transpose", [x], perm=[*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
    return None if turned is None else g.add("MatMul", [turned, x] if g.chance(0.5) else [x, turned])
