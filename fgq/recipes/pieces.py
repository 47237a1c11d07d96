"""Running a network piece by piece: every piece starts from the values that the one before has left.

A whole forward pass for every layer would cost the square of the depth. Here each sample goes through the
network once: after each piece the values that later nodes read are kept, and all others dropped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fgq.errors import DataError, OutputError, first_line
from fgq.graph import ort
from fgq.graph.ort_values import needs_values, run_values
from fgq.graph.queries import constant

Values = dict[str, Any]
"""Arrays by name; a sequence is a list of arrays, an empty optional value None."""

HELD_BYTES = 1 << 30
"""What a prefix keeps in memory, in bytes; further values lie in temporary files."""


class Replacement(NamedTuple):
    """A constant that a node reads in place of one of its inputs.

    Parameters
    ----------
    place : int
        Which input.
    array : ndarray
    """

    place: int
    array: NDArray[Any]


class Piece:
    """Some nodes of a graph as a function from the values they read to values they make.

    Parameters
    ----------
    model : onnx_ir.Model
        The model that the nodes belong to; its constants are found in it.
    nodes : sequence of onnx_ir.Node
        In graph order.
    outputs : sequence of str
        The values to return.
    replaced : mapping of onnx_ir.Node to Replacement, optional
        What some nodes read in place of what the graph says.
    """

    def __init__(
        self,
        model: ir.Model,
        nodes: Sequence[ir.Node],
        outputs: Sequence[str],
        replaced: Mapping[ir.Node, Replacement] | None = None,
    ) -> None:
        self._outputs = list(outputs)
        self._imports = dict(model.opset_imports)
        self._ir_version = model.ir_version
        self._functions = [ir.serde.serialize_function(each) for each in model.functions.values()]
        self._constants: dict[str, onnx.TensorProto] = {}
        self._nodes = []
        self._inputs: dict[str, ir.Value] = {}
        for node in nodes:
            proto = ir.serde.serialize_node(node)
            if replaced and node in replaced:
                name = f"{node.name}/replaced"
                proto.input[replaced[node].place] = name
                self._constants[name] = numpy_helper.from_array(replaced[node].array, name)
            self._nodes.append(proto)
            for value in reads(node):
                name = str(value.name)
                array = constant(value)
                if array is None:
                    self._inputs[name] = value
                elif name in proto.input or value not in node.inputs:
                    self._constants[name] = numpy_helper.from_array(array, name)
        self._session: Any = None

    def __call__(self, values: Values) -> Values:
        """Compute the outputs.

        Parameters
        ----------
        values : dict of str to ndarray
            What the nodes read, among other values.

        Raises
        ------
        ModelError
            If onnxruntime cannot load the nodes.
        DataError
            If it cannot run them.
        """
        if not self._outputs:
            return {}
        feed = {name: values[name] for name in self._inputs if name in values}
        if self._session is None:
            self._session = self._open(feed)
        try:
            return dict(zip(self._outputs, self._run(feed), strict=True))
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise DataError(f"calibration data: a layer cannot run on them ({first_line(error)})") from None

    def _run(self, feed: Values) -> list[Any]:
        if needs_values(self._session):
            return run_values(self._session, self._outputs, feed)
        return list(self._session.run(self._outputs, feed))

    def _open(self, feed: Values) -> Any:
        inputs = [_describe(self._inputs[name], given) for name, given in feed.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in self._outputs]
        graph = helper.make_graph(self._nodes, "piece", inputs, outputs, list(self._constants.values()))
        imports = [helper.make_opsetid(domain, number) for domain, number in self._imports.items()]
        proto = helper.make_model(
            graph, opset_imports=imports, ir_version=self._ir_version, functions=self._functions
        )
        return ort.open_session(proto.SerializeToString(), "a piece of the prepared graph")


class Prefix:
    """The values at one place of a graph, for every batch of the calibration data.

    Parameters
    ----------
    model : onnx_ir.Model
    feeds : sequence of mapping of str to ndarray
        The model's inputs, batch by batch.
    replaced : mapping of onnx_ir.Node to Replacement
        What nodes read in place of what the graph says; looked at when a node is run.

    Attributes
    ----------
    batches : list of dict of str to ndarray
        For each batch, what the nodes not yet run will read.
    """

    def __init__(
        self,
        model: ir.Model,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
        replaced: Mapping[ir.Node, Replacement],
    ) -> None:
        self._model = model
        self._nodes = list(model.graph)
        self._replaced = replaced
        self._done = 0
        self.batches: list[Values] = [dict(feed) for feed in feeds]

    def advance(self, node: ir.Node) -> None:
        """Run every node that stands before one in the graph, and was not run yet.

        Parameters
        ----------
        node : onnx_ir.Node

        Raises
        ------
        FgqError
            As `Piece`.
        """
        place = self._nodes.index(node)
        piece = self._nodes[self._done : place]
        later = {str(value.name) for other in self._nodes[place:] for value in reads(other)}
        wanted = [str(value.name) for other in piece for value in other.outputs if value.name in later]
        run = Piece(self._model, piece, wanted, self._replaced)
        shelf = Shelf()
        for index, values in enumerate(self.batches):
            known = values | run(values)
            self.batches[index] = shelf.hold({name: known[name] for name in known if name in later})
        self._done = place


class Shelf:
    """Holds values, up to `HELD_BYTES` of them in memory."""

    def __init__(self) -> None:
        self._held = 0

    def hold(self, values: Values) -> Values:
        """Return the same values, in temporary files where memory holds enough already."""
        self._held += sum(map(_bytes, values.values()))
        return values if self._held <= HELD_BYTES else {name: _on_disk(values[name]) for name in values}


def _describe(value: ir.Value, given: Any) -> onnx.ValueInfoProto:
    """Describe an input by what is given, or, where that is no array, by what the model knows of it."""
    if isinstance(given, np.ndarray):
        dtype = helper.np_dtype_to_tensor_dtype(given.dtype)
        return helper.make_tensor_value_info(str(value.name), dtype, [None] * given.ndim)
    known = onnx.ValueInfoProto(name=str(value.name))
    if value.type is not None:
        known.type.CopyFrom(ir.serde.serialize_type(value.type))
    return known


def _bytes(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_bytes, value))
    return int(getattr(value, "nbytes", 0))


def _on_disk(array: Any) -> Any:
    """Return the same values in a temporary file, which goes when the array does."""
    if isinstance(array, list):
        return [_on_disk(element) for element in array]
    if not isinstance(array, np.ndarray) or isinstance(array, np.memmap):
        return array
    if not array.nbytes or array.dtype.hasobject:
        return array
    try:
        with tempfile.TemporaryFile() as file:
            # Written, not only mapped: on a full disk that is an error, and not the end of the process.
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.flush()
            mapped: NDArray[Any] = np.memmap(file, array.dtype, "r+", shape=array.shape)
            return mapped
    except OSError as error:
        raise OutputError(
            f"temporary files: cannot be written ({error.strerror or error}), wanted a folder with space; "
            "TMPDIR may name one"
        ) from None


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the values that a node reads, and those that the nodes in its subgraphs read."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = ()
        if attribute.type is ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type is ir.AttributeType.GRAPHS:
            graphs = attribute.as_graphs()
        for graph in graphs:
            for inner in graph:
                yield from reads(inner)
