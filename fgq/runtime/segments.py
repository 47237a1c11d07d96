"""Parts of a model that fgq's kernels do not run: onnxruntime does, or where it may not, NumPy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import DataError, FgqError, ModelError, first_line
from fgq.format import onnx_file
from fgq.format.container import is_unpack, unpacked
from fgq.graph import ort
from fgq.graph.ort_values import needs_values, run_values
from fgq.graph.queries import constant
from fgq.runtime import operators
from fgq.runtime.misread import is_misread
from fgq.runtime.orders import Order
from fgq.runtime.plan import Segment
from fgq.runtime.steps.step import Array, Call, Orders, Runnable

_RECURRENT = frozenset({"GRU", "LSTM"})


class ForeignStep(Runnable):
    """A segment made ready to run.

    Parameters
    ----------
    segment : Segment
    """

    raised = False

    def __init__(self, segment: Segment) -> None:
        self.segment, self.sources = segment, segment.inputs
        self.nodes = len(segment.nodes)

    @property
    def results(self) -> tuple[ir.Value, ...]:
        """The segment's outputs."""
        return self.segment.outputs

    @property
    def name(self) -> str:
        """The names of the segment's outputs."""
        return ", ".join(str(value.name) for value in self.segment.outputs)

    def orders(self, given: Sequence[Order]) -> Orders:
        """Ask for the plain orders."""
        return Orders((None,) * len(given), None)

    def run_once(self, arrays: Sequence[Any], threads: int) -> tuple[list[Any], bool]:
        """See `Runnable`."""
        return self.run(arrays), False

    @abstractmethod
    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Compute the outputs for these inputs.

        Raises
        ------
        DataError
            If the inputs do not fit.
        """


class NumpyStep(ForeignStep):
    """A segment whose nodes are computed one by one by `fgq.runtime.operators`.

    Parameters
    ----------
    segment : Segment
    opset : int
        Of the standard operators.

    Raises
    ------
    ModelError
        If one of its nodes is of another operator.
    """

    kernel = "numpy"
    plannable = False

    def __init__(self, segment: Segment, opset: int) -> None:
        super().__init__(segment)
        self._opset = opset
        self._calls: list[tuple[ir.Node, operators.Operator, dict[str, Any]]] = []
        self._constants: dict[ir.Value | None, Array] = {}
        for node in segment.nodes:
            self._constants.update(
                (value, array)
                for value in node.inputs
                if value is not None and (array := constant(value)) is not None
            )
            if is_unpack(node):
                self._constants[node.outputs[0]] = unpacked(node)
                continue
            operator = operators.find(node.domain, node.op_type)
            if operator is None:
                raise ModelError(
                    f"{node.name or node.op_type}: found the operator {node.op_type}, which runs in "
                    "onnxruntime only: leave fallback=True"
                )
            self._calls.append((node, operator, operators.attributes_of(node)))

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """See `ForeignStep`."""
        values: dict[ir.Value | None, Any] = {None: None, **self._constants}
        values.update(zip(self.segment.inputs, arrays, strict=True))
        for node, operator, attributes in self._calls:
            inputs = [values[value] for value in node.inputs]
            try:
                results = operator(inputs, attributes, self._opset, len(node.outputs))
            except FgqError as error:
                raise type(error)(f"{node.name or 'node'}: {error}") from None
            values.update(zip(node.outputs, results, strict=False))
        return [values[value] for value in self.segment.outputs]

    def bind_all(
        self, arrays: Sequence[Array], outs: Sequence[Array], scratch: NDArray[np.uint8], threads: int
    ) -> NoReturn:
        """Refuse: NumPy makes arrays of its own."""
        raise TypeError(f"{self.name}: runs step by step only")


class SegmentStep(ForeignStep):
    """A segment, loaded into onnxruntime.

    Parameters
    ----------
    segment : Segment
    threads : int or None
        How many threads it uses; None leaves that to onnxruntime.

    Raises
    ------
    ModelError
        If onnxruntime refuses the segment.
    """

    kernel = "onnxruntime"

    def __init__(self, segment: Segment, threads: int | None) -> None:
        super().__init__(segment)
        self._inputs = [str(value.name) for value in segment.inputs]
        self._outputs = [str(value.name) for value in segment.outputs]
        with onnx_file.on_disk(segment.model) as path:
            self.session = ort.open_session(
                path,
                "a part of the model",
                threads=threads,
                fused=not any(is_misread(node) for node in segment.model.graph.all_nodes()),
            )
        self._needs_values = needs_values(self.session)
        self._filled = _read_by_recurrent(segment)
        self._joined = list(_joined(segment))

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """See `ForeignStep`."""
        feed = dict(zip(self._inputs, arrays, strict=True))
        for name in self._filled:
            if getattr(feed[name], "size", 1) == 0:
                raise DataError(
                    f"{name}: found the shape {list(feed[name].shape)}, wanted elements: GRU and LSTM read it"
                )
        for joined, known in self._joined:
            ranks = known | {np.ndim(feed[name]) for name in joined}
            if len(ranks) > 1:
                raise DataError(
                    f"{', '.join(joined)}: found tensors of {sorted(ranks)} axes to concatenate, "
                    "wanted equally many"
                )
        try:
            if self._needs_values:
                return run_values(self.session, self._outputs, feed)
            return list(self.session.run(self._outputs, feed))
        except Exception as error:
            raise DataError(
                f"inputs: found values that the model cannot run on ({first_line(error)})"
            ) from None

    def bind_all(
        self, arrays: Sequence[Array], outs: Sequence[Array], scratch: NDArray[np.uint8], threads: int
    ) -> Call:
        """See `Runnable`: arrays of numbers in C order.

        The call raises where the results have other shapes than `outs`.
        """
        binding = self.session.io_binding()
        for name, array in zip(self._inputs, arrays, strict=True):
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, out in zip(self._outputs, outs, strict=True):
            binding.bind_output(name, "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
        session, kept = self.session, (arrays, outs)

        def run() -> None:
            assert kept
            session.run_with_iobinding(binding)

        return run


def _read_by_recurrent(segment: Segment) -> list[str]:
    """Return the inputs of a segment that reach a GRU or LSTM: onnxruntime dies of those without elements."""
    names = {str(value.name) for value in segment.inputs}
    graphs = (segment.model.graph, *(function.graph for function in segment.model.functions.values()))
    waiting: list[ir.Value | None] = []
    for graph in graphs:
        for node in graph.all_nodes():
            if node.op_type in _RECURRENT and node.domain == "":
                if node.graph is not segment.model.graph:  # what reaches it, the nodes around it say
                    return sorted(names)
                waiting.extend(node.inputs)
    seen: set[ir.Value] = set()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        maker = value.producer()
        if maker is not None:
            waiting.extend(maker.inputs)
    return sorted({str(value.name) for value in seen} & names)


def _joined(segment: Segment) -> Iterator[tuple[list[str], set[int]]]:
    """Yield the inputs of unknown rank that Concats read, and the ranks of what they are joined with.

    onnxruntime dies of an empty one of fewer axes than the others.
    """
    names = {str(value.name) for value in segment.inputs}
    for node in segment.model.graph.all_nodes():
        operands = [value for value in node.inputs if value is not None]
        joined = [str(value.name) for value in operands if value.shape is None and value.name in names]
        if (node.domain, node.op_type) == ("", "Concat") and joined:
            yield joined, {len(value.shape) for value in operands if value.shape is not None}


def bindable(array: Any) -> bool:
    """Tell whether onnxruntime can read or write an array in place."""
    return isinstance(array, np.ndarray) and array.dtype.kind in "fiub" and array.size > 0
