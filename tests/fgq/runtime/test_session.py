import copy
import threading

import numpy as np
import onnx
import pytest
from onnx import helper

from fgq import Session, convert
from fgq.errors import ConfigError, DataError, FgqError, ModelError

TEXT = """(float[N,3,8,8] x, float[N,8] z) => (float y, float s, float t) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, v)
    d = Relu(c)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    g = Add(f, z)
    y = Gemm<transB=1>(g, u, k)
    s = Softmax(y)
    t = Neg(z)
}"""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3), "u": normal(5, 8), "k": normal(5)}
FEEDS = {"x": normal(4, 3, 8, 8, seed=1), "z": normal(4, 8, seed=2)}


@pytest.fixture(scope="module")
def float_model(make_model):
    return make_model(TEXT, WEIGHTS)


@pytest.fixture(scope="module")
def converted(float_model):
    return convert(float_model, calibration=FEEDS, group_size=4).model


@pytest.fixture(scope="module")
def session(converted):
    return Session(converted.SerializeToString())


def test_describes_inputs_and_outputs_as_onnxruntime_does(session, converted):
    import onnxruntime

    theirs = onnxruntime.InferenceSession(converted.SerializeToString(), providers=["CPUExecutionProvider"])
    for ours, others in (
        (session.get_inputs(), theirs.get_inputs()),
        (session.get_outputs(), theirs.get_outputs()),
    ):
        assert [(a.name, a.shape, a.type) for a in ours] == [(a.name, a.shape, a.type) for a in others]


def test_outputs_in_the_order_asked_for(session, run, converted):
    y, s, t = session.run(None, FEEDS)
    for ours, theirs in zip((y, s, t), run(converted, FEEDS), strict=True):
        # softmax: five exponentials, each of which may round otherwise
        # and whose smallest results are 0 here, where onnxruntime has denormals
        np.testing.assert_allclose(ours, theirs, rtol=5e-7 if ours is s else 0, atol=2e-38)
    again = session.run(["t", "y", "t"], FEEDS)
    for found, expected in zip(again, (t, y, t), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert session.run([], FEEDS) == []


@pytest.mark.parametrize("batch", [1, 3])
def test_batches_of_any_length(session, batch):
    part = session.run(None, {name: array[:batch] for name, array in FEEDS.items()})
    for some, all_ in zip(part, session.run(None, FEEDS), strict=True):
        np.testing.assert_array_equal(some, all_[:batch])


def test_layout_of_the_input_does_not_matter(session):
    turned = {name: np.asfortranarray(array) for name, array in FEEDS.items()}
    np.testing.assert_array_equal(session.run(["y"], turned)[0], session.run(["y"], FEEDS)[0])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "found none, wanted x, z"),
        ({"x": FEEDS["x"]}, "found x, wanted x, z"),
        (FEEDS | {"w": WEIGHTS["w"]}, "found w, x, z, wanted x, z"),
        (FEEDS | {"x": FEEDS["x"].astype(np.float64)}, "double"),
        (FEEDS | {"x": FEEDS["x"][:, :2]}, "dimensions"),
        (FEEDS | {"x": FEEDS["x"][0]}, "rank"),
    ],
)
def test_refuses_inputs_that_do_not_fit(session, feeds, message):
    with pytest.raises(DataError, match=message):
        session.run(None, feeds)


def test_refuses_unknown_outputs(session):
    with pytest.raises(DataError, match=r"output 'a': not of this model, wanted one of y, s, t"):
        session.run(["a"], FEEDS)


def test_several_threads_at_once(converted, session):
    sessions = [session, Session(converted.SerializeToString(), kernels="multiplication-free", threads=1)]
    expected = session.run(None, FEEDS)
    found = {}

    def work(index):
        found[index] = [sessions[index % 2].run(None, FEEDS) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results in found.values():
        for result in results:
            for ours, theirs in zip(result, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert len(found) == 6


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_is_never_pickled(session, duplicate):
    """Copies go the way of pickles."""
    with pytest.raises(TypeError, match="cannot be pickled"):
        duplicate(session)


@pytest.mark.parametrize("kernels", ["auto", "reference", "multiplication-free"])
def test_steps_say_what_runs(converted, kernels):
    steps = {
        step.name: step.kernel for step in Session(converted.SerializeToString(), kernels=kernels).steps()
    }
    layers = {name: kernel for name, kernel in steps.items() if "gem" in kernel or "reference" in kernel}
    assert len(layers) == 3
    first, ternary, last = layers.values()
    if kernels == "reference":
        assert all(kernel.endswith("reference") for kernel in layers.values())
    elif kernels == "multiplication-free":
        assert "ternary" in ternary
        assert "ternary" not in first
        assert "ternary" not in last


def test_unknown_wish(converted):
    with pytest.raises(ConfigError, match="kernels: found 'fast'"):
        Session(converted.SerializeToString(), kernels="fast")


def test_a_float_model_is_refused_with_advice(float_model):
    with pytest.raises(ModelError, match=r"found 3 float layers .*fgq convert.*allow_float=True"):
        Session(float_model.SerializeToString())


def test_a_model_without_layers_runs_whole(make_model, run):
    model = make_model("(float[3] x) => (float y) { y = Relu(x) }")
    x = normal(3)
    np.testing.assert_array_equal(
        Session(model.SerializeToString()).run(None, {"x": x})[0], run(model, {"x": x})[0]
    )


def test_float_model_runs_whole(float_model, run, tmp_path):
    path = tmp_path / "float.onnx"
    onnx.save(float_model, path)
    session = Session(path, allow_float=True)
    assert [step.kernel for step in session.steps()] == ["onnxruntime"]
    for ours, theirs in zip(session.run(None, FEEDS), run(float_model, FEEDS), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_external_data(float_model, converted, session, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    for model in (float_model, converted):
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        onnx.save(
            copied, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
        )
        expected = Session(model.SerializeToString(), allow_float=True).run(None, FEEDS)
        again = Session(tmp_path / "m.onnx", allow_float=True)
        for ours, theirs in zip(again.run(None, FEEDS), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        (tmp_path / "m.data").unlink()


def test_inputs_with_a_default_are_constants(float_model, run):
    model = onnx.ModelProto()
    model.CopyFrom(float_model)
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in float_model.graph.initializer
    )
    session = Session(model.SerializeToString(), allow_float=True)
    assert [value.name for value in session.get_inputs()] == ["x", "z"]
    np.testing.assert_array_equal(session.run(["y"], FEEDS)[0], run(float_model, FEEDS, ["y"])[0])


@pytest.mark.parametrize(("operator", "domains"), [("nowhere.Relu", '"nowhere" : 1'), ("NoSuchOperator", "")])
def test_refuses_what_onnxruntime_refuses(make_model, operator, domains):
    model = make_model(f"(float[3] x) => (float y) {{ y = {operator}(x) }}", domains=domains)
    with pytest.raises(ModelError, match="onnxruntime refuses"):
        Session(model.SerializeToString())


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08"])
def test_refuses_bytes_that_are_no_model(content):
    with pytest.raises(FgqError):
        Session(content)


def test_outputs_that_no_layer_computes(make_model, run):
    text = """(float[N,16] x) => (float y, float[N,16] x, float w, float i) {
        a = MatMul(x, w)
        y = MatMul(a, v)
        i = Identity(k)
    }"""
    weights = {"w": normal(16, 16), "v": normal(16, 3), "k": normal(3)}
    feeds = {"x": normal(4, 16)}
    model = convert(make_model(text, weights), calibration=feeds, group_size=4).model
    for ours, theirs in zip(
        Session(model.SerializeToString()).run(None, feeds), run(model, feeds), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("memory", ["fast", "compact"])
def test_memory(converted, session, memory):
    held = Session(converted.SerializeToString(), memory=memory, kernels="dot", threads=1)
    for ours, theirs in zip(held.run(None, FEEDS), session.run(None, FEEDS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert held.weight_bytes > 0


def test_without_onnxruntime(make_model):
    text = TEXT.replace("t = Neg(z)", "t = Tanh(z)").replace("d = Relu(c)", "d = HardSwish(c)")
    model = convert(make_model(text, WEIGHTS), calibration=FEEDS, group_size=4).model
    alone, both = (Session(model.SerializeToString(), fallback=fallback) for fallback in (False, True))
    assert not any(step.kernel == "onnxruntime" for step in alone.steps())
    for ours, theirs in zip(alone.run(None, FEEDS), both.run(None, FEEDS), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # float ends


def test_without_onnxruntime_an_unknown_operator_is_refused(make_model):
    model = make_model("(float[3] x) => (float y) { y = Selu(x) }")
    with pytest.raises(ModelError, match=r"Selu.*fallback=True"):
        Session(model.SerializeToString(), fallback=False)


def test_sizes_that_depend_on_the_data(make_model, run):
    """What fits a first run must not be taken for granted in the next one of the same shapes."""
    text = """(float[N,8] x) => (float y, int64 k) {
        a = MatMul(x, w)
        b = Relu(a)
        y = MatMul(b, v)
        k = NonZero(b)
    }"""
    feeds = {"x": normal(16, 8)}
    weights = {"w": normal(8, 8), "v": normal(8, 4)}
    model = convert(make_model(text, weights), calibration=feeds, group_size=4).model
    session, sizes = Session(model.SerializeToString()), set()
    for seed in (3, 4, 5, 3):
        x = normal(16, 8, seed=seed)
        ours, theirs = session.run(None, {"x": x}), run(model, {"x": x})
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(ours[1], theirs[1])
        sizes.add(ours[1].shape)
    assert len(sizes) > 1


def test_results_belong_to_the_caller(session):
    first = session.run(["y"], FEEDS)[0]
    kept = first.copy()
    other = {name: -array for name, array in FEEDS.items()}
    session.run(["y"], other)
    np.testing.assert_array_equal(first, kept)


def test_shapes_come_and_go_without_memory(session):
    session.run(None, FEEDS)
    for batch in range(1, 20):
        feeds = {"x": normal(batch, 3, 8, 8), "z": normal(batch, 8)}
        assert session.run(["y"], feeds)[0].shape == (batch, 5)
        session.run(["y"], feeds)
    assert len(session._programs._known) <= session._programs.KEPT
    assert 0 < session.activation_bytes < 1 << 24


def test_profile(session):
    times = session.profile(FEEDS, 3)
    assert [time.step.name for time in times] == [step.name for step in session.steps()]
    assert all(time.seconds > 0 for time in times)


@pytest.mark.parametrize("threads", [0, -1, 1025, 10**9, 1.5, "2"])
def test_numbers_of_threads_that_are_none(converted, threads):
    with pytest.raises(ConfigError, match=r"threads: found .* wanted a whole number from 1 to 1024"):
        Session(converted.SerializeToString(), threads=threads)


def test_a_model_in_memory_is_taken_and_anything_else_refused(converted, session):
    for one, other in zip(Session(converted).run(None, FEEDS), session.run(None, FEEDS), strict=True):
        np.testing.assert_array_equal(one, other)
    for wrong in (None, 5, session, [converted.SerializeToString()]):
        with pytest.raises(
            ConfigError, match=r"model: found a \w+, wanted a path, bytes or an onnx.ModelProto"
        ):
            Session(wrong)
