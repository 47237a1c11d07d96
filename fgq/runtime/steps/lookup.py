"""Functions of one activation: a table of 256 results, whatever the operators in between.

The nodes from a DequantizeLinear to a QuantizeLinear that work on each element by itself are run once, on all
256 activations, by onnxruntime; so the table holds what onnxruntime computes for the same nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.graph import ort
from fgq.graph.queries import constant, is_operator
from fgq.kernels.operators.lookup import Lookup
from fgq.runtime.misread import is_misread
from fgq.runtime.orders import Order
from fgq.runtime.quantizers import read_clipped, read_quantized
from fgq.runtime.steps.step import Array, Call, Orders, Step

POINTWISE = frozenset(
    "Abs Add Celu Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish Identity LeakyRelu Log Max Min Mish "
    "Mul Neg Pow Reciprocal Relu Selu Sigmoid Softplus Softsign Sqrt Sub Tanh ThresholdedRelu".split()
)
"""Operators whose results depend on one element each, where all other operands are scalars."""

_MOST_NODES = 32


class LookupStep(Step):
    """A function of each activation.

    Parameters
    ----------
    source, result : onnx_ir.Value
        The integers before and behind.
    table : ndarray of uint8, shape (256,)
        The result of each integer; those of int8 are held 128 higher.
    name : str
        The last operator's.
    """

    dtype = np.uint8
    kernel = "lookup"

    def __init__(self, source: ir.Value, result: ir.Value, table: NDArray[np.uint8], name: str) -> None:
        self.sources, self.result = (source,), result
        self._table, self._name = table, name

    @property
    def name(self) -> str:
        """The last operator's name."""
        return self._name

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        return Orders(tuple(given), given[0])

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return arrays[0].shape

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        return Lookup(arrays[0], out, self._table, threads)


def read_lookup(node: ir.Node, opset: int) -> LookupStep | None:
    """Recognise a function of one activation by the QuantizeLinear that ends it.

    Parameters
    ----------
    node : onnx_ir.Node
    opset : int
        Of the standard operators.

    Returns
    -------
    LookupStep or None
        None where there is no such function, or none that onnxruntime can tabulate.
    """
    if not is_operator(node, "QuantizeLinear"):
        return None
    made = read_clipped(node)
    source, axes, nodes, waiting = None, 0, {node}, [node.inputs[0]]
    if made is None:
        return None
    result = made[0]
    if result is not node.outputs[0]:
        nodes.add(result.producer())  # type: ignore[arg-type]
    while waiting:
        value = waiting.pop()
        producer = None if value is None else value.producer()
        quantized = read_quantized(value)
        if quantized is not None and producer is not None:
            if source not in (None, quantized.source):
                return None
            source = quantized.source
            nodes.add(producer)
        elif producer is None or producer.domain != "" or producer.op_type not in POINTWISE:
            return None
        elif producer not in nodes:
            nodes.add(producer)
            reads = [(read, constant(read)) for read in producer.inputs if read is not None]
            constants = [array for _, array in reads if array is not None]
            if len(nodes) > _MOST_NODES or any(array.size != 1 for array in constants):
                return None
            axes = max([axes, *(array.ndim for array in constants)])
            waiting.extend(read for read, array in reads if array is None)
    # a constant of more axes than the activations have would give them to the result
    if source is None or node.graph is None or axes > len(source.shape or ()):
        return None
    ordered = [other for other in node.graph if other in nodes]
    table = _tabulate(source, result, ordered, opset)
    named = [other for other in ordered if other.op_type in POINTWISE]
    return None if table is None else LookupStep(source, result, table, str((named or ordered)[-1].name))


def _tabulate(
    source: ir.Value, result: ir.Value, nodes: Sequence[ir.Node], opset: int
) -> NDArray[np.uint8] | None:
    """Run the nodes on all 256 integers; None where onnxruntime cannot."""
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    inside = set(nodes)
    initializers = [value for value in read if value.is_initializer()]
    outside = [
        producer
        for value in read
        if (producer := value.producer()) is not None and producer not in inside and value is not source
    ]
    view = ir.GraphView(
        [source], [result], nodes=[*outside, *nodes], initializers=initializers, opset_imports={"": opset}
    )
    clone = view.clone()
    for value in chain.from_iterable(node.outputs for node in clone):  # here they have another shape
        value.shape = None
    clone.inputs[0].shape = ir.Shape([256])
    model = ir.to_proto(ir.Model(clone, ir_version=10))
    dtype = np.int8 if source.dtype == ir.DataType.INT8 else np.uint8
    every = np.arange(256, dtype=np.int16) - (128 if dtype == np.int8 else 0)
    try:
        session = ort.open_session(
            model.SerializeToString(),
            "a function of one activation",
            threads=1,
            fused=not any(is_misread(node) for node in nodes),
        )
        (table,) = session.run(None, {str(source.name): every.astype(dtype)})
    except Exception:  # onnxruntime's exceptions share no other base
        return None
    raised: NDArray[np.uint8] = (table.astype(np.int16) + (128 if table.dtype == np.int8 else 0)).astype(
        np.uint8
    )
    return raised.ravel()
