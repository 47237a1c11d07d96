"""Models with quantizers of their own get no second ones where onnxruntime would merge the two."""

import numpy as np
import onnxruntime
import pytest

import fgq

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 8, 5, 5)).astype(np.float32)


def normal(*shape):
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


WEIGHTS = {
    "w": normal(8, 8, 1, 1),
    "v": normal(8, 8, 1, 1),
    "b": normal(8, 8)[0],
    "s": np.float32(0.02),
    "z": np.uint8(128),
    "n": np.int8(-3),
    "axes": np.full(8, 0.02, np.float32),
    "zeros": np.full(8, 128, np.uint8),
    "wide": np.uint16(30000),
    "w8": RNG.integers(-63, 64, (8, 8, 1, 1)).astype(np.int8),
    "ws": np.full(8, 0.004, np.float32),
}
OWN = "d = DequantizeLinear(q, s, z)"
MODELS = {
    "between layers": f"""c = Conv(x, w, b)
        r = Relu(c)
        q = QuantizeLinear(r, s, z)
        {OWN}
        u = DequantizeLinear<axis=0>(w8, ws)
        e = Conv(d, u)
        y = Conv(e, w)""",
    "before a layer": f"q = QuantizeLinear(x, s, z) {OWN} c = Conv(d, w, b) y = Conv(c, v)",
    "of int8": """q = QuantizeLinear(x, s, n)
        d = DequantizeLinear(q, s, n)
        c = Conv(d, w, b)
        y = Conv(c, v)""",
    "before a maximum": f"""q = QuantizeLinear(x, s, z)
        {OWN}
        m = MaxPool<kernel_shape=[2,2]>(d)
        c = Conv(m, w, b)
        y = Conv(c, v)""",
    "before a move": f"""q = QuantizeLinear(x, s, z)
        {OWN}
        t = Transpose<perm=[0,1,3,2]>(d)
        c = Conv(t, w, b)
        y = Conv(c, v)""",
    "before a bound": f"q = QuantizeLinear(x, s, z) {OWN} r = Relu(d) c = Conv(r, w, b) y = Conv(c, v)",
    "before a sum": f"""q = QuantizeLinear(x, s, z)
        {OWN}
        c = Conv(x, w, b)
        a = Add(c, d)
        y = Conv(a, v)""",
    "beside a layer": f"""c = Conv(x, w, b)
        q = QuantizeLinear(c, s, z)
        {OWN}
        e = Conv(c, v)
        y = Add(d, e)""",
    "behind a bound, beside a layer": f"""c = Conv(x, w, b)
        r = Relu(c)
        q = QuantizeLinear(r, s, z)
        {OWN}
        e = Conv(c, v)
        y = Add(d, e)""",
    "behind a maximum": f"""c = Conv(x, w, b)
        m = MaxPool<kernel_shape=[2,2]>(c)
        q = QuantizeLinear(m, s, z)
        {OWN}
        e = Conv(m, v)
        y = Add(d, e)""",
    "with a scale for each channel": """q = QuantizeLinear<axis=1>(x, axes, zeros)
        d = DequantizeLinear<axis=1>(q, axes, zeros)
        c = Conv(d, w, b)
        y = Conv(c, v)""",
    "of 16 bits": """q = QuantizeLinear(x, s, wide)
        d = DequantizeLinear(q, s, wide)
        c = Conv(d, w, b)
        y = Conv(c, v)""",
}


def unoptimized(path, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)


@pytest.fixture
def convert(make_model):
    def make(body, mode, **options):
        opset = 21 if "wide" in body else 17
        model = make_model(
            f"(float[N,8,5,5] x) => (float y) {{ {body} }}", WEIGHTS, opset=opset, ir_version=10
        )
        calibration = {"x": X} if mode in ("int8", "int4") else None
        return fgq.convert(
            model,
            weights="int8",
            activations=mode,
            calibration=calibration,
            recipe="fgq",
            x86_without_vnni=True,
            **options,
        )

    return make


def near(found, exact):
    """Tell whether values are equal to rounding, but for some that a step of a quantizer is between."""
    difference = np.abs(found - exact) / np.abs(exact).max()
    return np.mean(difference > 1e-5) < 0.05 and difference.max() < 0.02


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, "int8") for name in MODELS]
    + [
        (name, mode)
        for name in ("between layers", "before a layer", "before a maximum", "beside a layer")
        for mode in ("int4", "none", "int8-dynamic")
    ],
)
def test_engines_agree(convert, run, tmp_path, name, mode):
    """With each other, and with onnxruntime where it merges nothing."""
    model, report = convert(MODELS[name], mode)
    path = tmp_path / "converted.onnx"
    path.write_bytes(model.SerializeToString())
    feeds = {"x": X[:4]}
    (plain,), (merged,), (ours,) = (
        unoptimized(path, feeds),
        run(path, feeds),
        fgq.Session(path).run(None, feeds),
    )
    assert near(merged, plain)
    assert near(ours, plain)
    assert report.self_check.outputs[0].signal_to_noise_db > (10 if mode == "int4" else 25)
    assert not any("prepared float graph" in line for line in report.warnings)


@pytest.mark.parametrize(
    ("name", "activations", "note"),
    [
        ("before a layer", "int8", "its input keeps the model's own quantizer"),
        ("of int8", "int8", "its input keeps the model's own quantizer"),
        ("before a maximum", "int8", "its input keeps the model's own quantizer"),
        ("before a bound", "float", "of other than 8 bits and one scale"),
        ("with a scale for each channel", "float", "of other than 8 bits and one scale"),
        ("of 16 bits", "float", "of other than 8 bits and one scale"),
    ],
)
def test_what_a_layer_reads_keeps_its_quantizer(convert, name, activations, note):
    report = convert(MODELS[name], "int8").report
    layer = report.layers[0]
    assert (layer.activations, note in layer.reason) == (activations, True)
    assert len(report.quantizers) == 1  # between the two layers


@pytest.mark.parametrize("mode", ["int8", "none"])
def test_weights_without_zero_points_that_need_all_of_int8(make_model, tmp_path, mode):
    """onnxruntime makes them unsigned on processors without VNNI, and fails without their zero points."""
    weights = WEIGHTS | {"w8": RNG.integers(-127, 128, (8, 8, 1, 1)).astype(np.int8)}
    model = make_model(f"(float[N,8,5,5] x) => (float y) {{ {MODELS['between layers']} }}", weights)
    calibration = {"x": X} if mode == "int8" else None
    found, report = fgq.convert(
        model, weights="int8", activations=mode, calibration=calibration, recipe="fgq"
    )
    assert report.self_check is not None
    assert not any("prepared float graph" in line for line in report.warnings)
    path = tmp_path / "converted.onnx"
    path.write_bytes(found.SerializeToString())
    assert near(fgq.Session(path).run(None, {"x": X[:4]})[0], unoptimized(path, {"x": X[:4]})[0])
