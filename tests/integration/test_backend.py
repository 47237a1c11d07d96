"""ONNX's own tests of operators and small models (onnx.backend.test), through our backend."""

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.backend.test.runner import Runner

from fgq.errors import ConfigError, DataError, ModelError
from fgq.runtime import backend, operators


class Case(NamedTuple):
    """A model, and inputs with the outputs that they should give."""

    name: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    rtol: float
    atol: float


def read(value: Any) -> Any:
    """Return a tensor, or what holds tensors, as arrays."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def stored(folder: Path, what: str) -> list[Any]:
    files = sorted(folder.glob(f"{what}_*.pb"), key=lambda path: int(path.stem.rpartition("_")[2]))
    return [read(onnx.TensorProto.FromString(path.read_bytes())) for path in files]


@cache
def cases(kind: str) -> list[Case]:
    """The cases of a kind; those made on the spot come with their data, the others have them on disk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # some are made of overflows
        tests = load_model_tests(kind=kind)
    found = []
    for test in tests:
        if test.model_dir is None:
            data = [([*map(read, i)], [*map(read, o)]) for i, o in test.data_sets]
            model = test.model
        else:
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            if any(not value.type.HasField("tensor_type") for value in model.graph.input):
                continue  # sequences: their files hold something else, and node tests have many
            sets = sorted(folder.glob("test_data_set_*"))
            data = [(stored(one, "input"), stored(one, "output")) for one in sets]
        found.append(Case(test.name, model, data, test.rtol, test.atol))
    return found


class Onnxruntime:
    """onnxruntime as a backend."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: list[Any]) -> list[Any]:
        names = [value.name for value in self._session.get_inputs()]
        return self._session.run(None, dict(zip(names, inputs, strict=True)))


class Walk:
    """Our operators alone: the nodes of the main graph, one after the other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = ir.serde.deserialize_model(model)

    def run(self, inputs: list[Any]) -> list[Any]:
        graph = self._model.graph
        values: dict[Any, Any] = {None: None}
        values |= {value: value.const_value.numpy() for value in graph.initializers.values()}
        fed = (value for value in graph.inputs if value not in values)
        values |= dict(zip(fed, inputs, strict=True))
        for node in graph:
            operator = operators.find(node.domain, node.op_type)
            results = operator(
                [values[value] for value in node.inputs],
                operators.attributes_of(node),
                graph.opset_imports[node.domain],
                len(node.outputs),
            )
            values |= dict(zip(node.outputs, results, strict=False))
        return [values[value] for value in graph.outputs]


def failure(case: Case, prepare: Any) -> str | None:
    """Return how a case fails, None if it passes."""
    try:
        prepared = prepare(case.model)
        for inputs, outputs in case.data:
            Runner.assert_similar_outputs(outputs, prepared.run(inputs), case.rtol, case.atol)
    except Exception as error:
        return f"{case.name}: {type(error).__name__} {str(error)[:300]}"
    return None


def ours() -> Iterator[Case]:
    """The tests of nodes that our operators claim."""
    for case in cases("node"):
        if all(operators.find(node.domain, node.op_type) for node in case.model.graph.node):
            yield case


def lost(some: Iterator[Case] | list[Case]) -> list[str]:
    """How the cases fail that onnxruntime's CPU provider passes."""
    passed = (case for case in some if failure(case, Onnxruntime) is None)
    return [why for case in passed if (why := failure(case, backend.prepare)) is not None]


def test_our_operators_pass_all_their_tests():
    assert [why for case in ours() if (why := failure(case, Walk)) is not None] == []


def test_each_of_our_operators_is_tested():
    assert {node.op_type for case in ours() for node in case.model.graph.node} == set(operators.names())


def test_sessions_pass_what_onnxruntime_passes_of_our_operators():
    assert lost(ours()) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["node", "simple", "pytorch-converted", "pytorch-operator"])
def test_sessions_pass_what_onnxruntime_passes(kind):
    assert lost(cases(kind)) == []


MODEL = helper.make_model(
    onnx.parser.parse_graph("g (float[N] x, float[N] z) => (float[N] y) {y = Sub(x, z)}"),
    opset_imports=[helper.make_opsetid("", 17)],
    ir_version=8,
)
A, B = np.array([3, 4], np.float32), np.array([1, 0.5], np.float32)


@pytest.mark.parametrize("inputs", [[A, B], (A, B), {"z": B, "x": A}], ids=["list", "tuple", "dict"])
def test_inputs_by_order_or_by_name(inputs):
    for outputs in (backend.prepare(MODEL).run(inputs), backend.run(MODEL, inputs)):
        assert isinstance(outputs, tuple)
        np.testing.assert_array_equal(outputs[0], [2, 3.5])


def test_one_input_needs_no_list():
    (found,) = backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [B - 1])
    np.testing.assert_array_equal(found, [0, 0])
    model = helper.make_model(
        onnx.parser.parse_graph("g (float[N] x) => (float[N] y) {y = Neg(x)}"), ir_version=8
    )
    model.opset_import[0].version = 17
    np.testing.assert_array_equal(backend.prepare(model).run(A)[0], -A)


def test_one_node():
    node = helper.make_node("Clip", ["x", "", "high"], ["y"])
    (found,) = backend.run_node(node, [A, np.array(3.5, np.float32)])
    np.testing.assert_array_equal(found, [3, 3.5])
    (older,) = backend.run_node(helper.make_node("Clip", ["x"], ["y"], max=3.5), [A], opset_version=10)
    np.testing.assert_array_equal(older, found)
    with pytest.raises(DataError, match="inputs: found 1 values, wanted 2: x, high"):
        backend.run_node(node, [A])


def test_devices_and_compatibility():
    assert backend.supports_device("CPU")
    assert backend.supports_device("CPU:0")
    assert not backend.supports_device("CUDA")
    assert backend.is_compatible(MODEL)
    broken = onnx.ModelProto()
    assert not backend.is_compatible(broken)
    with pytest.raises(ModelError):
        backend.prepare(broken)
    with pytest.raises(ConfigError, match="device: found 'CUDA', wanted CPU"):
        backend.prepare(MODEL, "CUDA")


def test_options_of_the_session():
    assert backend.prepare(MODEL, kernels="reference", threads=1).run([A, B])
    with pytest.raises(ConfigError, match="kernels"):
        backend.prepare(MODEL, kernels="fast")
    with pytest.raises(ConfigError, match="run: found the options fast, wanted none"):
        backend.prepare(MODEL).run([A, B], fast=True)


def test_says_how_many_inputs_there_are():
    with pytest.raises(DataError, match="inputs: found 1 values, wanted 2: x, z"):
        backend.prepare(MODEL).run([A])
