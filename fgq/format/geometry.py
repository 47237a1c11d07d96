"""Whether the sizes that a graph states can be meant: what onnxruntime believes, and dies of, is refused.

onnx's checker looks at no shape of an operand and at no number of an attribute. onnxruntime 1.31 takes some
of them on trust: it reads the first element of an empty scale, divides by a number of heads that is 0, or
throws where nothing catches. The rules here are ONNX's own, for what can be told from the file alone:
attributes, constants, and shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from math import prod

import numpy as np
import onnx_ir as ir

from fgq.errors import SizeError
from fgq.format.operand_sizes import MOST_AXES, Sizes, constant_tensor
from fgq.format.window_sizes import LARGEST, WINDOWS, window_faults

MOST_ELEMENTS = 2**28
"""Of a constant that is computed, which onnxruntime does when it loads a model."""

MOST_TIMES = 8
"""How often the constants of a model may be unfolded into one; fgq's own hold five numbers a byte."""

_QUANTIZERS: Mapping[str, tuple[int, ...]] = {
    "ConvInteger": (2, 3),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QuantizeLinear": (1, 2),
}
"""Where operators read scales and zero points."""

_SINGLE: Mapping[str, tuple[int, ...]] = {
    "BlackmanWindow": (0,),
    "Clip": (1, 2),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (1, 2),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "If": (0,),
    "Loop": (0, 1),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "NonMaxSuppression": (2, 3, 4),
    "OneHot": (1,),
    "Pad": (2,),
    "Range": (0, 1, 2),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "TopK": (1,),
    "Trilu": (1,),
}
"""Which inputs of operators are one number."""

_SHAPES: Mapping[str, int] = {
    "AffineGrid": 1,
    "Col2Im": 1,
    "ConstantOfShape": 0,
    "Expand": 1,
    "MaxUnpool": 2,
    "Reshape": 1,
    "Tile": 1,
}
"""Which input of operators is a shape, or has a number for each axis."""

_SEVERAL = frozenset({"Concat", "Einsum", "Max", "Mean", "Min", "SequenceConstruct", "Sum"})
"""Operators of any number of operands; onnxruntime reads one that is left out as if it were there."""

_AXES = (
    "axis",
    "axes",
    "batch_axis",
    "batch_dims",
    "perm",
    "scan_input_axes",
    "scan_output_axes",
    "time_axis",
)
"""Attributes that name axes; onnx's shape inference goes wrong where one is no 32-bit number."""


def check_geometry(model: ir.Model, name: str, *, inferred: bool = False) -> None:
    """Check the sizes that the nodes of a model state.

    Parameters
    ----------
    model : onnx_ir.Model
    name : str
        What errors call the model.
    inferred : bool
        Whether the shapes of computed values have been inferred; if not, they are only what the file says,
        and are not looked at.

    Raises
    ------
    SizeError
        If a quantizer has no scale, one that is not positive, or not one for each channel, or other zero
        points than scales; if an attribute outside of functions refers to a function's; if one of an
        operator's any number of operands is left out; if an operand that is one number, or a shape, is
        another thing; if a window has sizes below 1; if a constant would be computed that is far larger than
        the file; or if an attribute is outside of what its operator allows.
    """
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.is_ref():  # onnxruntime would pass over that, and take the value beside it
                raise SizeError(
                    f"{name}: node {node.name or node.op_type!r}: attribute {attribute.name!r}: found one of "
                    "a function's, wanted a value outside of functions"
                )
    graphs = (model.graph, *(function.graph for function in model.functions.values()))
    for node in chain.from_iterable(graph.all_nodes() for graph in graphs):
        if any(attribute.is_ref() for attribute in node.attributes.values()):
            continue  # what it is to be, the call of the function says
        try:
            found = next(_faults(node, inferred), None)
        except TypeError as error:  # an attribute of a type that onnx's checker did not know
            found = str(error)
        if found is not None:
            raise SizeError(f"{name}: node {node.name or node.op_type!r}: {found}")
    if inferred:
        _check_computed(model, name)


def depends_on_calls(model: ir.Model) -> bool:
    """Tell whether what this module checks in a function's body is said by the calls of the function.

    Parameters
    ----------
    model : onnx_ir.Model
    """
    for function in model.functions.values():
        for node in function.all_nodes():
            if node.op_type in WINDOWS or node.op_type in _SPECIAL:
                return True
            several = range(len(node.inputs)) if node.op_type in _SEVERAL else ()
            for index in (*_QUANTIZERS.get(node.op_type, ()), *_SINGLE.get(node.op_type, ()), *several):
                value = node.inputs[index] if index < len(node.inputs) else None
                if value is not None and value.producer() is None:
                    return True
    return False


def has_computed_quantizers(model: ir.Model) -> bool:
    """Tell whether a scale or zero point is computed, from constants perhaps, when onnxruntime loads a model.

    Parameters
    ----------
    model : onnx_ir.Model
    """
    for node in model.graph.all_nodes():
        for index in _QUANTIZERS.get(node.op_type, ()) if node.domain == "" else ():
            value = node.inputs[index] if index < len(node.inputs) else None
            maker = None if value is None else value.producer()
            if maker is not None and maker.op_type not in ("Constant", "DynamicQuantizeLinear"):
                return True
    return False


def _check_computed(model: ir.Model, name: str) -> None:
    """Check the sizes of what is computed of constants alone."""
    graph = model.graph
    held = {value: value.const_value for value in graph.initializers.values()}
    most = max(MOST_ELEMENTS, MOST_TIMES * sum(tensor.size for tensor in held.values() if tensor is not None))
    constants = {value for value, tensor in held.items() if tensor is not None and not value.is_graph_input()}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type != "Constant" and not (inputs and constants.issuperset(inputs)):
            continue
        constants.update(node.outputs)
        for value in node.outputs:
            shape = [] if value.shape is None else list(value.shape)
            sizes = [size for size in shape if isinstance(size, int)]
            if len(sizes) == len(shape) and prod(sizes) > most:
                raise SizeError(
                    f"{name}: node {node.name or node.op_type!r}: found the shape {sizes} of what is made "
                    f"of constants, wanted at most {most} elements"
                )


def _faults(node: ir.Node, inferred: bool) -> Iterator[str]:
    """Yield what is wrong with a node."""
    sizes = Sizes(node, inferred)
    if node.domain == "com.microsoft":
        yield from _foreign_quantizer(node, sizes)
    if node.domain != "":
        return
    for name in _AXES:
        if name in node.attributes:
            attribute = node.attributes[name]
            axes = [attribute.as_int()] if attribute.type == ir.AttributeType.INT else attribute.as_ints()
            if any(not -MOST_AXES <= axis <= MOST_AXES for axis in axes):
                yield f"{name}: found {list(axes)}, wanted axes of at most {MOST_AXES}"
    if node.op_type in _SEVERAL and None in node.inputs:
        yield f"found no input {node.inputs.index(None)}, wanted all {len(node.inputs)} of them"
    for index in _QUANTIZERS.get(node.op_type, ()):
        if 0 in sizes.of(index):
            yield f"found a scale or zero point of shape {sizes.of(index)}, wanted a number or several"
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        yield from _quantizer(node, sizes)
    for index in _SINGLE.get(node.op_type, ()):
        shape = sizes.of(index)
        if sizes.known(index) and prod(shape) != 1:
            yield f"found the shape {shape} of input {index}, wanted a single number"
    if node.op_type in _SHAPES:
        yield from _shape_operand(node, sizes, _SHAPES[node.op_type])
    if node.op_type in WINDOWS:
        yield from window_faults(node, sizes)
    if node.op_type in _SPECIAL:
        yield from _SPECIAL[node.op_type](node, sizes)


def _foreign_quantizer(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    """Check the operands of onnxruntime's own quantized operators, and the heads of its attention."""
    if node.op_type.startswith(("Q", "DequantizeLinear", "DynamicQuantize", "MatMulInteger")):
        for index in range(len(node.inputs)):
            if 0 in sizes.of(index):
                yield f"found the shape {sizes.of(index)} of input {index}, wanted elements"


def _quantizer(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    scale, zero = sizes.of(1), sizes.of(2)
    value = node.inputs[1]
    tensor = None if value is None else constant_tensor(value)
    if node.op_type == "QuantizeLinear" and tensor is not None:
        steps = tensor.numpy().astype(np.float64)
        if not (np.isfinite(steps) & (steps > 0)).all():
            yield f"found the scale {steps.min(initial=np.inf)}, wanted positive numbers"
    if sizes.known(1) and sizes.known(2) and prod(scale) != prod(zero):
        yield f"found scales of shape {scale} and zero points of shape {zero}, wanted equal ones"
    axes, axis = sizes.axes(0), node.attributes.get_int("axis", 1)
    if axes is None or len(scale) != 1 or scale[0] == 1 or node.attributes.get_int("block_size", 0) != 0:
        return
    if not -len(axes) <= axis < len(axes):
        yield f"found scales along axis {axis} of a tensor of {len(axes)} axes"
    elif axes[axis] not in (None, scale[0]):
        yield f"found {scale[0]} scales along axis {axis}, which has {axes[axis]}; wanted one for each"


def _shape_operand(node: ir.Node, sizes: Sizes, index: int) -> Iterator[str]:
    shape, numbers = sizes.of(index), sizes.numbers(index)
    if len(shape) > 1 or prod(shape) > MOST_AXES:
        yield f"found the shape {shape} of input {index}, wanted at most {MOST_AXES} sizes"
    if (
        numbers is not None
        and node.op_type in ("ConstantOfShape", "Expand")
        and prod(numbers) > MOST_ELEMENTS
    ):
        yield f"found the shape {numbers}, wanted at most {MOST_ELEMENTS} elements"


def _attention(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    axes = sizes.axes(0)
    yield from _ranks({0: 3, 1: 3, 2: 3, 4: 4, 5: 4})(node, sizes)
    for name in ("q_num_heads", "kv_num_heads"):
        if name in node.attributes:
            heads = node.attributes[name].as_int()
            if not 1 <= heads <= LARGEST:
                yield f"{name}: found {heads}, wanted 1 or more"
        elif axes is not None and len(axes) == 3:
            yield f"found no {name} and queries of 3 axes, wanted one of them otherwise"


def _gather_nd(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    if node.attributes.get_int("batch_dims", 0) < 0:
        yield f"batch_dims: found {node.attributes['batch_dims'].as_int()}, wanted 0 or more"


def _parts(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    count = node.attributes.get_int("num_outputs", len(node.outputs))
    if count != len(node.outputs):
        yield f"num_outputs: found {count}, wanted {len(node.outputs)}, the number of its outputs"


def _split(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    numbers = sizes.numbers(1) or []
    if any(number < 0 for number in numbers) or (sizes.axes(1) == [] and numbers == [0]):
        yield f"found parts of sizes {numbers}, wanted at least 1"


def _stft(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    windowed = len(node.inputs) > 2 and node.inputs[2] is not None
    if sizes.inferred and (sizes.axes(0) is None or (windowed and not sizes.known(2))):
        yield "found a signal of open rank or a window of open size, wanted both declared"
    if 0 in sizes.of(2):
        yield "found an empty window, wanted one or more numbers"
    for index in (1, 3):
        if any(number < 1 for number in sizes.numbers(index) or []):
            yield f"found {sizes.numbers(index)} as input {index}, wanted at least 1"


def _dft(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    if sizes.inferred and sizes.axes(0) is None:  # a scalar ends the process
        yield "found an operand whose number of axes is open, wanted it declared: 2 or more"
    yield from _ranks({0: 2})(node, sizes)


def _ranks(least: Mapping[int, int]) -> Callable[[ir.Node, Sizes], Iterator[str]]:
    """Return a check that inputs have a number of axes at least, and elements."""

    def check(node: ir.Node, sizes: Sizes) -> Iterator[str]:
        for index, wanted in least.items():
            axes = sizes.axes(index)
            if axes is not None and len(axes) < wanted:
                yield f"found {len(axes)} axes of input {index}, wanted {wanted} or more"

    return check


def _concat(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    ranks = {len(axes) for index in range(len(node.inputs)) if (axes := sizes.axes(index)) is not None}
    axis = node.attributes.get_int("axis", 1)
    if len(ranks) > 1:
        yield f"found tensors of {sorted(ranks)} axes, wanted equally many"
    elif ranks and not -min(ranks) <= axis < min(ranks):
        yield f"axis: found {axis}, wanted one of {min(ranks)} axes"


def _resize(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    axes, named = sizes.axes(0), node.attributes.get_ints("axes")
    if axes is None or len(node.inputs) < 3:
        return
    wanted = len(axes) if named is None else len(named)
    for index, times, what in ((1, 2, "roi"), (2, 1, "scales"), (3, 1, "sizes")):
        shape = sizes.of(index)
        if sizes.known(index) and prod(shape) not in (0, wanted * times):
            yield f"{what}: found the shape {shape}, wanted {wanted * times} numbers"


def _range(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    ends = [sizes.numbers(index) for index in range(3)]
    if all(end is not None and len(end) == 1 for end in ends):
        (start,), (limit,), (step,) = (end or [0] for end in ends)
        if step == 0 or (limit - start) // step > MOST_ELEMENTS:
            yield f"found {start} to {limit} in steps of {step}, wanted at most {MOST_ELEMENTS} numbers"


def _tile(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    repeats = sizes.numbers(1)
    if repeats is not None and any(number < 0 for number in repeats):
        yield f"found {repeats} repeats, wanted 0 or more"
    elif repeats is not None and sizes.known(0) and prod(repeats) * prod(sizes.of(0)) > MOST_ELEMENTS:
        yield f"found {repeats} repeats of the shape {sizes.of(0)}, wanted at most {MOST_ELEMENTS} elements"


def _pad(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    pads, axes = sizes.numbers(1), sizes.axes(0)
    if pads is None or len(node.inputs) > 3 or not sizes.known(0) or axes is None:
        return
    if len(pads) != 2 * len(axes):
        yield f"found {len(pads)} pads, wanted {2 * len(axes)}"
    elif (
        prod(a + b + c for a, b, c in zip(sizes.of(0), pads, pads[len(axes) :], strict=False)) > MOST_ELEMENTS
    ):
        yield f"found the pads {pads} of the shape {sizes.of(0)}, wanted at most {MOST_ELEMENTS} elements"


def _recurrent(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    if 0 in sizes.of(0):
        yield f"found an input of shape {sizes.of(0)}, wanted elements"


def _where(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    """Refuse quantizers that onnxruntime joins with the Where between, as if they were constant."""
    makers = [None if value is None else value.producer() for value in node.inputs]
    around = [maker for maker in makers if maker is not None] + list(_behind(node.outputs[0]))
    for quantizer in around:
        if quantizer.domain == "" and quantizer.op_type in ("QuantizeLinear", "DequantizeLinear"):
            operands = [value for value in quantizer.inputs[1:] if value is not None]
            if any(constant_tensor(value) is None for value in operands):
                yield f"found the quantizer {quantizer.name!r} beside it, wanted one of a constant scale"


def _mul(node: ir.Node, sizes: Sizes) -> Iterator[str]:
    """Refuse factors of a product of integers that are more than its columns: onnxruntime reads beyond it."""
    for index, value in enumerate(node.inputs[:2]):
        cast = None if value is None else value.producer()
        read = None if cast is None or cast.op_type != "Cast" else cast.inputs[0]
        product = None if read is None else read.producer()
        if product is None or (product.domain, product.op_type) != ("", "MatMulInteger"):
            continue
        own, factor = sizes.axes(index), sizes.axes(1 - index)
        if own and factor and None not in (own[-1], factor[-1]) and factor[-1] not in (1, own[-1]):
            yield f"found {factor[-1]} factors for the {own[-1]} columns of {product.name!r}, wanted as many"


def _behind(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that read a value, or what a Relu or Clip makes of it."""
    for reader in value.consumers():
        yield reader
        if reader.op_type in ("Relu", "Clip"):
            yield from reader.outputs[0].consumers()


_SPECIAL: Mapping[str, Callable[[ir.Node, Sizes], Iterator[str]]] = {
    "Attention": _attention,
    "Concat": _concat,
    "DFT": _dft,
    "GRU": _recurrent,
    "GatherND": _gather_nd,
    "LSTM": _recurrent,
    "Pad": _pad,
    "RNN": _recurrent,
    "Range": _range,
    "Resize": _resize,
    "STFT": _stft,
    "Split": _parts,
    "SplitToSequence": _split,
    "Tile": _tile,
    "Mul": _mul,
    "Where": _where,
}
