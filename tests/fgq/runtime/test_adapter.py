import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from fgq import Session, convert
from fgq.errors import ConfigError, DataError
from fgq.runtime.adapter import InferenceSession

X = np.array([[1, -2], [-3, 4]], np.float32)


@pytest.fixture(scope="module")
def model(make_model):
    made = make_model("(float[N,2] x) => (float y, float z) {y = Relu(x)\nz = Neg(x)}")
    made.producer_name, made.domain, made.doc_string, made.model_version = "p", "d.e", "a model", 7
    made.graph.doc_string = "a graph"
    helper.set_model_props(made, {"labels": "a,b"})
    return made


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    found = tmp_path_factory.mktemp("adapter") / "model.onnx"
    onnx.save(model, found)
    return found


def classify(make, path):
    """Written for onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = make(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    first = session.get_inputs()[0]
    feed = {first.name: X}
    results = session.run(names[:1], feed, onnxruntime.RunOptions())
    results += session.run(None, feed) + session.run([], feed)
    meta = session.get_modelmeta()
    about = [
        *(meta.producer_name, meta.graph_name, meta.domain, meta.description, meta.graph_description),
        *(meta.version, meta.custom_metadata_map),
    ]
    described = [(arg.name, arg.shape, arg.type) for arg in (*session.get_inputs(), *session.get_outputs())]
    chosen = (session.get_providers(), session.get_provider_options(), session.get_overridable_initializers())
    return results, about, described, chosen, session.get_session_options().intra_op_num_threads


def test_code_for_onnxruntime_runs_unchanged(path):
    results, *others = classify(InferenceSession, path)
    expected, *their_others = classify(onnxruntime.InferenceSession, path)
    assert others == their_others
    for found, theirs in zip(results, expected, strict=True):
        np.testing.assert_array_equal(found, theirs)


def test_from_bytes(model):
    session = InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(session.run(["z"], {"x": X})[0], -X)
    assert session.get_modelmeta().custom_metadata_map == {"labels": "a,b"}
    assert session.get_modelmeta() is session.get_modelmeta()


@pytest.mark.parametrize("threads", [0, 3])
def test_threads_are_those_of_the_options(monkeypatch, path, threads):
    seen = {}

    class Fake:
        def __init__(self, source, **options):
            seen.update(options, source=source)

    monkeypatch.setattr("fgq.runtime.adapter.Session", Fake)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    InferenceSession(path, options, kernels="dot")
    assert seen == {"source": path, "kernels": "dot", "threads": threads or None, "allow_float": True}


@pytest.mark.parametrize(
    "providers",
    [["CUDAExecutionProvider", "CPUExecutionProvider"], [("CUDAExecutionProvider", {"device_id": 0})]],
)
def test_other_providers_are_passed_over(path, providers):
    with pytest.warns(UserWarning, match="'CUDAExecutionProvider' is not available"):
        session = InferenceSession(path, providers=providers)
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_options_that_cannot_be_met(path):
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    with pytest.raises(
        ConfigError, match=r"enable_profiling: found True, wanted False; see fgq\.Session\.steps"
    ):
        InferenceSession(path, options)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = "optimized.onnx"
    with pytest.raises(ConfigError, match="optimized_model_filepath: found a path, wanted none"):
        InferenceSession(path, options)


@pytest.mark.parametrize(
    "method",
    [
        *("io_binding", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector"),
        *("run_async", "end_profiling", "set_providers"),
    ],
)
def test_methods_that_there_are_not(path, method):
    session = InferenceSession(path)
    assert hasattr(onnxruntime.InferenceSession, method)
    with pytest.raises(ConfigError, match=f"^{method}: not part of fgq's session, "):
        getattr(session, method)(1, options=2)


def test_refuses_outputs_and_inputs_as_the_session_does(path):
    session = InferenceSession(path)
    with pytest.raises(DataError, match="'w': not of this model"):
        session.run(["w"], {"x": X})
    with pytest.raises(DataError):
        session.run(None, {"x": X.astype(np.float64)})


def test_in_the_place_of_onnxruntimes_own(make_model, tmp_path, monkeypatch):
    """The shortest way to change engines: fgq itself goes on with onnxruntime's class."""
    text = "(float[N,8] x) => (float y) {a = MatMul(x, w)\nb = Sin(a)\ny = MatMul(b, v)}"
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((8, 8), np.float32), "v": rng.standard_normal((8, 4), np.float32)}
    x = rng.standard_normal((16, 8), np.float32)
    monkeypatch.setattr(onnxruntime, "InferenceSession", InferenceSession)
    converted, _ = convert(make_model(text, weights), calibration={"x": x}, group_size=4)
    onnx.save(converted, tmp_path / "c.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx")
    assert isinstance(session, InferenceSession)
    np.testing.assert_array_equal(
        session.run(None, {"x": x})[0], Session(tmp_path / "c.onnx").run(None, {"x": x})[0]
    )
