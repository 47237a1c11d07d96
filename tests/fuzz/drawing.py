"""Random legal float models, each node tried in onnxruntime as it is drawn.

`draw` gives a model, samples to calibrate on and feeds of several sizes. Nodes are drawn carelessly: one that
onnxruntime refuses, or that makes values beyond use, is dropped, and so the shapes of what is left are known
from arrays and nowhere computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Feeds = dict[str, Array]

MOST_ELEMENTS = 6000
"""Of one value: cases are to be quick."""


@dataclass(slots=True)
class Drawn:
    """A model and what to run it on.

    Parameters
    ----------
    model : onnx.ModelProto
    samples : list of dict of str to ndarray
        To calibrate on.
    feeds : list of dict of str to ndarray
        Of several sizes; onnxruntime runs the model on the first.
    """

    model: onnx.ModelProto
    samples: list[Feeds]
    feeds: list[Feeds]


@dataclass(slots=True)
class _Input:
    name: str
    declared: list[int | str]
    make: Callable[[tuple[int, ...]], Array]
    dtype: int


@dataclass(slots=True)
class Graph:
    """A graph as it grows, with the array behind every value."""

    rng: np.random.Generator
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[_Input] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    reals: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)
    count: int = 0

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def name(self, stem: str = "v") -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def shape(self, value: str) -> tuple[int, ...]:
        return tuple(self.arrays[value].shape)

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        drawn: Array = (scale * self.rng.standard_normal(shape)).astype(np.float32)
        return drawn

    def constant(self, array: Any, *, plain: bool = False) -> str:
        """Add a constant: an initializer, or sometimes a Constant node."""
        array, name = np.asarray(array), self.name("c")
        self.arrays[name] = array
        if not plain and self.chance(0.15):
            node = helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
            self.nodes.append(node)
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        self.constants.append(name)
        return name

    def shared(self, shape: tuple[int, ...]) -> str | None:
        """Return a weight of that shape that is there already, at times."""
        fitting = [name for name in self.constants if self.arrays[name].shape == shape]
        fitting = [name for name in fitting if self.arrays[name].dtype == np.float32]
        return self.pick(*fitting) if fitting and self.chance(0.4) else None

    def weight(self, *shape: int, reduction: int) -> str:
        """Add a weight, at times one that is shared or strange."""
        if (name := self.shared(shape)) is not None:
            return name
        array = self.normal(*shape, scale=max(reduction, 1) ** -0.5)
        kind = self.rng.random()
        if kind < 0.04:
            array[self.rng.random(shape) < 0.5] = 0
        elif kind < 0.06:
            array[...] = 0
        elif kind < 0.08 and array.size and shape:
            array[0] = 0
        elif kind < 0.10:
            array *= 1e-6
        elif kind < 0.12 and array.size and shape:
            array[-1] *= 1e3
        elif kind < 0.14:
            array = np.full(shape, 0.25, np.float32)
        name = self.constant(array)
        if len(shape) >= 2 and self.chance(0.08):
            name = self.through(name)
        return name

    def through(self, name: str) -> str:
        """Hide a constant behind operators on constants."""
        array = self.arrays[name]
        if self.chance(0.5):
            permutation = [int(i) for i in self.rng.permutation(array.ndim)]
            other = self.constant(np.ascontiguousarray(array.transpose(np.argsort(permutation))))
            found = self.add("Transpose", [other], perm=permutation)
        else:
            flat = self.constant(array.reshape(-1), plain=True)
            found = self.add("Reshape", [flat, self.constant(np.array(array.shape, np.int64))])
        return found or name

    def add(self, op: str, reads: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        """Add a node if onnxruntime runs it, and return its results, or None."""
        node = helper.make_node(op, list(reads), [self.name() for _ in range(outputs)], **attributes)
        if self.chance(0.7):
            node.name = f"{op}_{self.count}"
        return self.add_node(node)

    def add_node(self, node: onnx.NodeProto) -> Any:
        """Add a node made elsewhere; the names of its outputs must be new."""
        reads = list(dict.fromkeys(name for name in _reads(node) if name in self.arrays))
        results = run_node(node, {name: self.arrays[name] for name in reads}, self.opset)
        if results is None or any(not usable(array) for array in results):
            return None
        self.nodes.append(node)
        self.arrays.update(zip(node.output, results, strict=True))
        return node.output[0] if len(node.output) == 1 else list(node.output)

    def input(self, shape: Sequence[int], declared: Sequence[int | str], make: Any, dtype: int) -> str:
        name = self.name("x")
        self.inputs.append(_Input(name, list(declared), make, dtype))
        self.arrays[name] = make(tuple(shape))
        return name

    def new_input(self, shape: Sequence[int]) -> str:
        """Add an input of real numbers; some of its axes are open."""
        kind, rng = self.rng.random(), self.rng
        declared: list[int | str] = list(shape)
        letters = list("NHWDEF") if self.chance(0.5) else [self.name("d") for _ in range(6)]
        share = self.pick(0.0, 0.3, 0.3, 1.0)
        for axis in range(len(shape)):
            if (axis == 0 and self.chance(0.75)) or (axis > 0 and axis != 1 and self.chance(share * 0.5)):
                declared[axis] = letters[axis]

        def make(size: tuple[int, ...]) -> Array:
            drawn: Array = rng.standard_normal(size).astype(np.float32)
            if kind < 0.15:
                drawn = np.abs(drawn)
            elif kind < 0.2:
                drawn = (drawn * 0.01 + 3).astype(np.float32)
            elif kind < 0.23:
                drawn = np.round(drawn * 100)
            return drawn

        name = self.input(shape, declared, make, TensorProto.FLOAT)
        self.reals.append(name)
        return name


def _reads(node: onnx.NodeProto) -> list[str]:
    """Return what a node and its subgraphs read."""
    found = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in attribute.g.node:
            found += _reads(inner)
        found += [value.name for value in attribute.g.output]
    return found


def usable(array: Array) -> bool:
    """Tell whether a value is worth going on with."""
    if not isinstance(array, np.ndarray) or not 0 < array.size <= MOST_ELEMENTS or array.ndim > 6:
        return False
    if array.dtype.kind != "f":
        return True
    return bool(np.isfinite(array).all() and np.abs(array).max(initial=0) < 1e5)


def session(model: bytes, *, optimized: bool = True, **entries: str) -> onnxruntime.InferenceSession:
    """Return an onnxruntime session of one thread that says nothing."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    # Products with dequantized weights stay float, as the file says (fgq.graph.ort).
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    for key, value in entries.items():
        options.add_session_config_entry(key.replace("__", "."), value)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_node(node: onnx.NodeProto, arrays: Feeds, opset: int) -> list[Array] | None:
    """Run a node by itself; None where onnxruntime does not."""
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in arrays.items()}
    inputs = [
        helper.make_tensor_value_info(name, types[name], list(array.shape)) for name, array in arrays.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "node", inputs, outputs)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    try:
        found: list[Array] = session(model.SerializeToString()).run(None, arrays)
    except Exception:  # onnxruntime's exceptions share no other base
        return None
    return found


def draw(rng: np.random.Generator) -> Drawn:
    """Draw a model.

    Parameters
    ----------
    rng : numpy.random.Generator
    """
    from blocks import BLOCKS, LAYERS, NETWORK  # it imports this module

    graph = Graph(rng, opset=int(rng.integers(9, 27)))
    rank = graph.pick(4, 4, 4, 3, 3, 2, 2)
    batch = int(rng.integers(1, 5))
    channels = int(rng.integers(1, graph.pick(4, 9, 21)))
    shape = {
        4: (batch, channels, int(rng.integers(1, 9)), int(rng.integers(1, 9))),
        3: (batch, int(rng.integers(1, 9)), channels),
        2: (batch, int(rng.integers(1, 41))),
    }[rank]
    current = graph.new_input(shape)
    if graph.chance(0.06):
        current = embedding(graph, shape) or current
    blocks, weights = zip(*(NETWORK if graph.chance(0.5) else BLOCKS), strict=True)
    shares = np.array(weights) / sum(weights)
    wanted, tries = int(rng.integers(2, 9)), 0
    while wanted > 0 and tries < 60:
        tries += 1
        at = current if graph.chance(0.75) else graph.pick(*graph.reals)
        block = blocks[int(rng.choice(len(blocks), p=shares))]
        found = block(graph, at)
        if found is not None:
            graph.reals.append(found)
            current = found
            wanted -= 1
    last = [current]
    if not _layers(graph, last):
        last += [name for name in graph.reals if _layers(graph, [name])][-1:]
    for _ in range(10):
        if _layers(graph, last) or graph.chance(0.01):
            break
        found = graph.pick(*LAYERS)(graph, current)
        if found is not None:
            graph.reals.append(found)
            last = [found]
    return _finish(graph, last)


def _layers(graph: Graph, outputs: list[str]) -> int:
    """Count the products with a constant matrix, and convolutions of images, on which values depend."""
    matrices = {name for name in graph.constants if graph.arrays[name].ndim >= 2}
    makers = {name: node for node in graph.nodes for name in node.output}
    waiting, seen, count = list(outputs), set[str](), 0
    while waiting:
        name = waiting.pop()
        node = makers.get(name)
        if name in seen or node is None:
            continue
        seen.add(name)
        waiting += _reads(node)
        if node.op_type == "Conv":
            count += len(graph.shape(node.input[0])) == 4
        elif node.op_type in ("MatMul", "Gemm"):
            count += bool(matrices & set(node.input[:2]))
    return count


def embedding(graph: Graph, shape: tuple[int, ...]) -> str | None:
    """Start from integers that pick rows of a table."""
    rows = int(graph.rng.integers(2, 12))
    declared: list[int | str] = ["N", *shape[1:2]]
    name = graph.input(
        shape[:2],
        declared,
        lambda size: graph.rng.integers(0, rows, size).astype(np.int64),
        TensorProto.INT64,
    )
    table = graph.constant(graph.normal(rows, int(graph.rng.integers(1, 20))))
    found: str | None = graph.add("Gather", [table, name], axis=0)
    return found


def _finish(graph: Graph, last: list[str]) -> Drawn:
    """Choose outputs, declare shapes, and make feeds."""
    rng = graph.rng
    outputs = list(last)
    for _ in range(int(rng.choice([0, 0, 0, 1, 2]))):
        made = [name for node in graph.nodes for name in node.output]
        made = [name for name in made if name in graph.arrays and name not in graph.constants]
        one = graph.pick(*made, graph.inputs[0].name) if made else graph.inputs[0].name
        if one not in outputs:
            outputs.append(one)
    rng.shuffle(outputs)
    infos = []
    for name in outputs:
        array = graph.arrays[name]
        dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
        stem = name if graph.chance(0.7) else "o"
        dims: list[int | str] = [f"{stem}_{axis}" for axis in range(array.ndim)]
        if name in [entry.name for entry in graph.inputs] and graph.chance(0.7):
            dims = next(entry.declared for entry in graph.inputs if entry.name == name)
        infos.append(helper.make_tensor_value_info(name, dtype, dims))
    if any(isinstance(dim, str) for entry in graph.inputs for dim in entry.declared) and not _any_size(
        graph, outputs
    ):
        for entry in graph.inputs:
            entry.declared = list(graph.shape(entry.name))
    inputs = [
        helper.make_tensor_value_info(entry.name, entry.dtype, entry.declared) for entry in graph.inputs
    ]
    if graph.opset < 12 and graph.chance(0.3):  # files of old exporters list their initializers too
        for tensor in graph.initializers:
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    proto = helper.make_graph(graph.nodes, "drawn", inputs, infos, graph.initializers)
    if graph.chance(0.08):  # what an exporter saw, and what is no longer so
        for node in graph.nodes:
            for name in node.output:
                if name in graph.arrays and name not in outputs and graph.chance(0.5):
                    array = graph.arrays[name]
                    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
                    proto.value_info.append(helper.make_tensor_value_info(name, dtype, list(array.shape)))
    least = next(row[1] for row in helper.VERSION_TABLE if row[2] >= graph.opset and row[0] != "ML")
    imports = [helper.make_opsetid("", graph.opset)]
    if any(node.domain == "com.microsoft" for node in proto.node):
        imports.append(helper.make_opsetid("com.microsoft", 1))
    model = helper.make_model(
        proto, opset_imports=imports, ir_version=int(rng.integers(least, max(least, 10) + 1))
    )
    first = {entry.name: graph.arrays[entry.name] for entry in graph.inputs}
    samples = [first]
    for _ in range(int(rng.choice([0, 1, 3, 3]))):
        samples.append({entry.name: entry.make(graph.shape(entry.name)) for entry in graph.inputs})
    feeds = [{entry.name: entry.make(graph.shape(entry.name)) for entry in graph.inputs}]
    feeds += [_other_sizes(graph, rng) for _ in range(2)]
    return Drawn(model, samples, feeds)


def _any_size(graph: Graph, outputs: list[str]) -> bool:
    """Tell whether a graph runs on one and on two samples, where its inputs leave their number open."""
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "sizes",
            [
                helper.make_tensor_value_info(entry.name, entry.dtype, [None] * len(entry.declared))
                for entry in graph.inputs
            ],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", graph.opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    try:
        runs = session(model.SerializeToString())
        for batch in (1, 2):
            sizes = [(entry, list(graph.shape(entry.name))) for entry in graph.inputs]
            for entry, size in sizes:
                size[:1] = [batch if isinstance(dim, str) else dim for dim in entry.declared[:1]]
            runs.run(None, {entry.name: entry.make(tuple(size)) for entry, size in sizes})
    except Exception:  # onnxruntime's exceptions share no other base
        return False
    return True


def _other_sizes(graph: Graph, rng: np.random.Generator) -> Feeds:
    """Return feeds of other sizes along the open axes: of equal names one size, at times two."""
    sizes: dict[str, int] = {}
    agree = rng.random() < 0.7
    feeds = {}
    for entry in graph.inputs:
        shape = list(graph.shape(entry.name))
        for axis, dim in enumerate(entry.declared):
            if not isinstance(dim, str):
                continue
            change = axis == 0 or rng.random() < 0.5
            size = int(rng.choice([1, 1, 2, 3, 5, 7] if axis == 0 else [1, shape[axis], shape[axis] + 1]))
            if rng.random() < 0.02:
                size = 0
            if change:
                shape[axis] = sizes.setdefault(dim, size) if agree else size
        feeds[entry.name] = entry.make(tuple(shape))
    return feeds
