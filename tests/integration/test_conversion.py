"""Conversions from end to end: the same bytes twice, every option, every form, real topologies."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from fgq import ConversionConfig, Session, WeightScheme, convert, convert_file
from fgq.errors import ConfigError, DataError, ModelError, OutputError, WeightError
from fgq.eval.light_models import light_model
from fgq.kernels.products.dispatch import Wish

TEXT = """(float[N,3,8,8] x) => (float y) {
    a = Conv<pads=[1,1,1,1]>(x, w, b)
    n = BatchNormalization(a, g, b, m, s)
    r = Relu(n)
    c = Conv<pads=[1,1,1,1]>(r, v)
    d = Add(c, r)
    p = GlobalAveragePool(d)
    q = Flatten(p)
    e = Gemm<transB=1>(q, u, k)
    y = MatMul(e, t)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "w": normal(8, 3, 3, 3),
    "b": normal(8),
    "v": normal(8, 8, 3, 3),
    "u": normal(6, 8),
    "k": normal(6),
}
WEIGHTS |= {"g": normal(8), "m": normal(8), "s": np.ones(8, np.float32), "t": normal(6, 4)}
FEEDS = {"x": normal(6, 3, 8, 8)}


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(TEXT, WEIGHTS)


@pytest.mark.parametrize("form", ["packed", "int8", "inlined"])
@pytest.mark.parametrize("activations", ["int8", "int4", "int8-dynamic", "int8-dynamic-token", "none"])
def test_same_bytes_twice(model, check_integers, form, activations):
    options = {"calibration": FEEDS, "group_size": 4, "form": form, "activations": activations}
    first, second = (convert(model, **options) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert first.report == second.report
    check_integers(first.model, FEEDS, rtol=1e-6)
    (check,) = first.report.self_check.outputs
    assert first.report.self_check.repeatable
    assert check.engines_difference < 1e-6


def test_same_bytes_in_another_process(model, tmp_path):
    """Neither the hash seed of a process nor the order of a set shows in the file."""
    onnx.save(model, tmp_path / "float.onnx")
    np.savez(tmp_path / "x.npz", **FEEDS)
    script = """if True:
        import sys, numpy as np, fgq
        config = fgq.ConversionConfig(group_size=4)
        data = dict(np.load(sys.argv[2]))
        fgq.convert_file(sys.argv[1], sys.argv[3], config, data)
    """
    for seed in "01":
        arguments = [tmp_path / "float.onnx", tmp_path / "x.npz", tmp_path / f"out{seed}.onnx"]
        subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            check=True,
            cwd=tmp_path,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        )
    first, second = (tmp_path / f"out{seed}.onnx" for seed in "01")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() == convert(model, calibration=FEEDS, group_size=4).model.SerializeToString()


@pytest.mark.parametrize("kind", ["mapping", "feeds", "reader"])
def test_calibration_data_of_every_kind(model, kind):
    class Reader:
        def __init__(self):
            self.left = 2

        def get_next(self):
            self.left -= 1
            return None if self.left < 0 else {"x": FEEDS["x"][(1 - self.left) * 3 :][:3]}

    sources = {"mapping": FEEDS, "feeds": [FEEDS], "reader": Reader()}
    expected = convert(model, calibration=FEEDS, group_size=4).model.SerializeToString()
    assert convert(model, calibration=sources[kind], group_size=4).model.SerializeToString() == expected


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("activations", ["int8", "int4"])
def test_dynamic_batch(model, run, activations, batch):
    result = convert(model, calibration=FEEDS, group_size=4, activations=activations).model
    part = {"x": FEEDS["x"][:batch]}
    (theirs,) = run(result, part)
    np.testing.assert_array_equal(theirs, run(result, FEEDS)[0][:batch])
    np.testing.assert_array_equal(Session(result.SerializeToString()).run(None, part)[0], theirs)


@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_batch(make_model, check_integers, batch):
    model = make_model(TEXT.replace("N", str(batch), 1), WEIGHTS)
    result = convert(model, calibration=FEEDS, group_size=4)
    check_integers(result.model, {"x": FEEDS["x"][:batch]})


def test_weights_alone(model, run):
    """Without calibration data, the weights are close to the float ones and activations untouched."""
    result = convert(model, activations="none", group_size=1, first_last_int8=False)
    assert not any(node.op_type == "QuantizeLinear" for node in result.model.graph.node)
    assert result.report.self_check.data == "random data"
    (found,), (exact,) = run(result.model, FEEDS), run(model, FEEDS)
    # Groups of one weight are numbers of 7 bits and a sign: an error below 1/254 of the largest in its row.
    np.testing.assert_allclose(found, exact, 0, 0.05 * np.abs(exact).max())


def test_finer_groups_are_closer(model, run):
    (exact,) = run(model, FEEDS)
    errors = [
        np.linalg.norm(run(convert(model, activations="none", group_size=size).model, FEEDS)[0] - exact)
        for size in (1, 2, 8)
    ]
    assert errors == sorted(errors)


def test_scheme_in_place_of_options(model):
    scheme = WeightScheme(group_size=4, weight_limit=63)
    expected = convert(model, calibration=FEEDS, group_size=4, x86_without_vnni=True)
    assert convert(model, scheme=scheme, calibration=FEEDS).model == expected.model


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"calibration": None}, DataError, "found none, wanted some hundred samples"),
        ({"calibration": {"z": FEEDS["x"]}}, DataError, "z"),
        ({"calibration": {"x": FEEDS["x"] * np.nan}}, DataError, "NaN"),
        ({"calibration": []}, DataError, "found no feeds"),
        ({"group_size": 0}, ConfigError, "group_size: found 0"),
        ({"group_size": 3, "group_size_fallback": "error"}, ConfigError, "multiple of the group size 3"),
        ({"form": "other"}, ConfigError, "form: found 'other'"),
        ({"include": "("}, ConfigError, "include"),
        ({"include": "nothing"}, ConfigError, "--include 'nothing'"),
    ],
)
def test_refusals(model, options, error, message):
    with pytest.raises(error, match=message):
        convert(model, **({"calibration": FEEDS} | options))


@pytest.mark.parametrize("activations", ["int8", "none"])
@pytest.mark.parametrize(
    ("name", "message"), [("w", "node: weights: found 1 of 216"), ("k", "node_7: bias: found 1 of 6")]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_weights_that_are_not_finite(make_model, name, message, value, activations):
    damaged = WEIGHTS[name].copy()
    damaged.flat[0] = value
    model = make_model(
        TEXT.replace("BatchNormalization(a, g, b, m, s)", "Identity(a)"), WEIGHTS | {name: damaged}
    )
    with pytest.raises(WeightError, match=f"{message} values NaN or infinite"):
        convert(model, calibration=FEEDS, activations=activations)


def test_refuses_a_model_without_layers(make_model):
    with pytest.raises(ModelError, match="found no layer to convert"):
        convert(make_model("(float[N,3] x) => (float y) { y = Relu(x) }"), calibration={"x": normal(2, 3)})


def test_file_is_written_whole_or_not_at_all(model, tmp_path):
    source, destination = tmp_path / "float.onnx", tmp_path / "out.onnx"
    onnx.save(model, source)
    with pytest.raises(DataError):
        convert_file(source, destination, ConversionConfig())
    assert [entry.name for entry in tmp_path.iterdir()] == ["float.onnx"]
    with pytest.raises(OutputError):
        convert_file(source, source, ConversionConfig(), FEEDS)
    report = convert_file(source, destination, ConversionConfig(group_size=4), FEEDS)
    assert report.converted_bytes == destination.stat().st_size
    assert report.float_bytes == source.stat().st_size
    assert (
        destination.read_bytes() == convert(source, calibration=FEEDS, group_size=4).model.SerializeToString()
    )


EXTREMES = {
    "zeros": np.zeros((16, 5)),
    "a column of zeros": normal(16, 5) * [1, 0, 1, 0, 1],
    "one weight": np.eye(16, 5),
    "small": normal(16, 5) * 1e-30,
    "subnormal": normal(16, 5) * 1e-40,
    "large": normal(16, 5) * 1e35,
    "of every size": normal(16, 5) * 10.0 ** np.arange(-8, 8)[:, None],
}


@pytest.mark.parametrize("weight", EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("bias", [0.0, 1e-30, 1e12])
@pytest.mark.parametrize("activation", [0.0, 1e-30, 1.0, -1.0])
def test_extreme_values(make_model, check_integers, weight, bias, activation):
    weights = {"w": weight.astype(np.float32), "k": np.full(5, bias, np.float32)}
    feeds = {"x": (np.abs(normal(4, 16)) * np.float32(activation)).astype(np.float32)}
    model = make_model("(float[N,16] x) => (float y) { y = Gemm(x, w, k) }", weights)
    result = convert(model, calibration=feeds, group_size=4, first_last_int8=False)
    check_integers(result.model, feeds)


@pytest.mark.parametrize("bound", ["Relu(b)", "Identity(b)"])
def test_additions_far_larger_than_the_products_before_them(make_model, check_integers, bound):
    # onnxruntime makes one Gemm of both, whose bias it rounds to int32
    text = f"""(float[N,16] x) => (float y) {{
        a = MatMul(x, w)
        b = Add(a, k)
        c = {bound}
        y = Gemm(c, v)
    }}"""
    weights = {"w": normal(16, 5) * np.float32(1e-7), "k": normal(5), "v": normal(5, 3)}
    model, feeds = make_model(text, weights), {"x": normal(4, 16)}
    result = convert(model, calibration=feeds, recipe="fgq", first_last_int8=False, x86_without_vnni=True)
    check_integers(result.model, feeds, rtol=1e-6)


@pytest.mark.parametrize("recipe", ["fgq", "calibrated", "omse"])
@pytest.mark.parametrize("layer", ["y = Gemm(x, w, k)", "a = MatMul(x, w)  y = Add(a, k)"])
def test_the_bias_of_a_layer_without_weights(make_model, run, layer, recipe):
    weights = {"w": np.zeros((16, 5), np.float32), "k": normal(5)}
    text = f"""(float[N,16] x) => (float z) {{
        {layer}
        z = Gemm(y, v)
    }}"""
    model, feeds = make_model(text, weights | {"v": np.eye(5, dtype=np.float32)}), {"x": 20 * normal(64, 16)}
    result = convert(model, calibration=feeds, recipe=recipe, weights="int8" if recipe == "omse" else None)
    (wanted,) = run(model, feeds)
    # a step of 8 bits each for the values between and for the weights behind
    most = np.abs(wanted).max() / 100
    for (found,) in run(result.model, feeds), Session(result.model.SerializeToString()).run(None, feeds):
        np.testing.assert_allclose(found, wanted, 0, most)


def test_a_mask_that_is_added_behind_a_product(make_model, check_integers):
    weights = {"w": normal(16, 5), "k": np.array([0, 0, -np.inf, 0, -np.inf], np.float32)}
    text = """(float[N,16] x) => (float y) {
        a = MatMul(x, w)
        b = Add(a, k)
        y = Softmax(b)
    }"""
    model, feeds = make_model(text, weights), {"x": normal(4, 16)}
    check_integers(convert(model, calibration=feeds, first_last_int8=False).model, feeds, rtol=1e-6)


@pytest.mark.parametrize("name", ["light_shufflenet", "light_squeezenet"])
def test_networks_of_2018(check_integers, name):
    """Opset 9 and IR version 3; channel shuffles, depthwise layers, skip connections, concatenations."""
    model = light_model(name)
    initializers = {tensor.name for tensor in model.graph.initializer}
    (name,) = (value.name for value in model.graph.input if value.name not in initializers)
    rng = np.random.default_rng(0)
    feeds = [{name: rng.standard_normal((1, 3, 224, 224)).astype(np.float32)} for _ in range(2)]
    result = convert(model, calibration=feeds, recipe="fgq")
    # Probabilities come of float operators.
    check_integers(result.model, feeds[0], rtol=1e-6, wishes=[Wish.AUTO])
