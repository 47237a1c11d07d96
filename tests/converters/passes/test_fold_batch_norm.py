import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from fgq.converters.passes import prepare
from fgq.converters.reader import read_float_model

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def batch_norm(name, channels):
    """Return the parameters of a BatchNormalization, with gains below and at zero."""
    gain = normal(channels)
    gain[:2] = [-1, 0][:channels]
    return {
        f"{name}g": gain,
        f"{name}s": normal(channels),
        f"{name}m": normal(channels),
        f"{name}v": RNG.uniform(0.1, 2, channels).astype(np.float32),
    }


WEIGHTS = {
    "w": normal(6, 4, 3, 3),
    "w1": normal(6, 4, 3),
    "w3": normal(6, 4, 3, 2, 2),
    "depthwise": normal(4, 1, 3, 3),
    "b": normal(6),
    "gain": normal(6, 1, 1),
    "shift": normal(1, 6, 1, 1),
    "row": normal(6),
    "full": normal(1, 6, 6, 6),
    "line": np.array([0, 0, 64]),
    "cube": np.array([0, 0, 8, 4, 2]),
    **batch_norm("n", 6),
    **batch_norm("k", 6),
    **batch_norm("p", 4),
}

FOLDED = {
    "no bias": "c = Conv(x, w)\n y = BatchNormalization(c, ng, ns, nm, nv)",
    "bias": "c = Conv(x, w, b)\n y = BatchNormalization(c, ng, ns, nm, nv)",
    "epsilon": "c = Conv(x, w, b)\n y = BatchNormalization<epsilon=0.5>(c, ng, ns, nm, nv)",
    "depthwise": "c = Conv<group=4>(x, depthwise)\n y = BatchNormalization(c, pg, ps, pm, pv)",
    "two in a row": """c = Conv(x, w)
        d1 = BatchNormalization(c, ng, ns, nm, nv)
        y = BatchNormalization(d1, kg, ks, km, kv)""",
    "Caffe's Scale": """c = Conv(x, w, b)
        n = BatchNormalization(c, ng, ns, nm, nv)
        m = Mul(n, gain)
        y = Add(shift, m)""",
    "operands in the other order": "c = Conv(x, w, b)\n m = Mul(gain, c)\n y = Add(shift, m)",
    "one dimension": "x1 = Reshape(x, line)\n c = Conv(x1, w1)\n y = BatchNormalization(c, ng, ns, nm, nv)",
    "three dimensions": """z = Reshape(x, cube)
        c = Conv(z, w3)
        y = BatchNormalization(c, ng, ns, nm, nv)""",
}

KEPT = {
    "result read twice": """c = Conv(x, w, b)
        n = BatchNormalization(c, ng, ns, nm, nv)
        y = Add(c, n)""",
    "result read twice by one step": "c = Conv(x, w, b)\n y = Mul(c, c)",
    "computed parameters": """c = Conv(x, w, b)
        g = ReduceMax<axes=[0,2,3], keepdims=0>(c)
        y = BatchNormalization(c, g, ns, nm, nv)""",
    "training mode": """c = Conv(x, w, b)
        y, mean, var = BatchNormalization<training_mode=1>(c, ng, ns, nm, nv)""",
    "a bound between": "c = Conv(x, w, b)\n r = Relu(c)\n y = BatchNormalization(r, ng, ns, nm, nv)",
    "a constant along the width": "c = Conv(x, w, b)\n y = Mul(c, row)",
    "a constant for each pixel": "c = Conv(x, w, b)\n y = Add(c, full)",
    "a constant along the depth": "x3 = Reshape(x, cube)\n c = Conv(x3, w3)\n y = Mul(c, gain)",
    "computed weights": """z = ReduceMax<keepdims=0>(x)
        k = Pow(w, z)
        c = Conv(x, k)
        y = BatchNormalization(c, ng, ns, nm, nv)""",
}

STEPS = ("BatchNormalization", "Mul", "Add")


@pytest.fixture
def compared(make_model, prepared):
    def compare(body):
        return prepared(
            make_model(f"(float[N,4,8,8] x) => (float y) {{ {body} }}", WEIGHTS), {"x": normal(2, 4, 8, 8)}
        )

    return compare


@pytest.mark.parametrize("body", FOLDED.values(), ids=FOLDED)
def test_folds(compared, body):
    found = compared(body)
    assert not any(found[step] for step in STEPS)


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_keeps(compared, body):
    found = compared(body)
    assert sum(found[step] for step in STEPS) >= 1


def test_one_weight_before_two_batch_norms(make_model, prepared):
    text = """(float[N,4,8,8] x) => (float y, float z) {
        c = Conv(x, w, b)
        y = BatchNormalization(c, ng, ns, nm, nv)
        d = Conv(x, w, b)
        z = BatchNormalization(d, kg, ks, km, kv)
    }"""
    found = prepared(make_model(text, WEIGHTS), {"x": normal(2, 4, 8, 8)})
    assert found == {"Conv": 2}


def test_convolution_that_is_an_output(make_model, prepared):
    text = """(float[N,4,8,8] x) => (float c, float y) {
        c = Conv(x, w, b)
        y = BatchNormalization(c, ng, ns, nm, nv)
    }"""
    found = prepared(make_model(text, WEIGHTS), {"x": normal(2, 4, 8, 8)})
    assert found["BatchNormalization"] == 1


def test_convolution_that_a_subgraph_reads(make_model, prepared):
    text = """(float[N,4,8,8] x, bool p) => (float y) {
        c = Conv(x, w, b)
        y = If(p) <
            then_branch = one () => (float t) { t = BatchNormalization(c, ng, ns, nm, nv) },
            else_branch = two () => (float e) { d = Conv(x, w, b)  e = BatchNormalization(d, kg, ks, km, kv) }
        >
    }"""
    for flag in (True, False):
        found = prepared(make_model(text, WEIGHTS), {"x": normal(2, 4, 8, 8), "p": np.array(flag)})
        assert found == {"Conv": 2, "If": 1, "BatchNormalization": 1}


def test_numbers_of_float16_that_would_become_infinite(make_model, prepared):
    half = {key: array.astype(np.float16) for key, array in WEIGHTS.items() if array.dtype == np.float32}
    half |= {"nv": np.full(6, 1e-7, np.float16), "ng": np.full(6, 90, np.float16)}
    text = """(float16[N,4,8,8] x) => (float16 y) {
        c = Conv(x, w)
        y = BatchNormalization<epsilon=1e-10>(c, ng, ns, nm, nv)
    }"""
    found = prepared(make_model(text, half), {"x": (normal(2, 4, 8, 8) / 1000).astype(np.float16)})
    assert found["BatchNormalization"] == 1


@pytest.mark.parametrize("read", ["", ", float[6] var"])
@pytest.mark.parametrize("opset", [9, 12, 13])
def test_further_outputs_mean_training_before_opset_14(make_model, run, opset, read):
    text = f"""(float[N,4,8,8] x) => (float y{read}) {{
        c = Conv(x, w)
        y, mean, var, saved_mean, saved_var = BatchNormalization(c, ng, ns, nm, nv)
    }}"""
    model = make_model(text, WEIGHTS, opset=opset)
    found = read_float_model(model)
    prepare(found)
    x = normal(2, 4, 8, 8)
    for exact, ours in zip(run(model, {"x": x}), run(ir.to_proto(found), {"x": x}), strict=True):
        np.testing.assert_allclose(ours, exact, 0, 1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("opset", [9, 13, 14, 15, 20])
def test_opsets(make_model, run, opset):
    """BatchNormalization-9, -14 (training_mode) and -15 (parameters of other types) fold alike."""
    text = "(float[N,4,8,8] x) => (float y) {c = Conv(x, w)  y = BatchNormalization(c, ng, ns, nm, nv)}"
    model = make_model(text, WEIGHTS, opset=opset, ir_version=3 if opset == 9 else 8)
    if opset == 9:
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
    found = read_float_model(model)
    prepare(found)
    x = normal(2, 4, 8, 8)
    (exact,), (folded,) = run(model, {"x": x}), run(ir.to_proto(found), {"x": x})
    assert [node.op_type for node in found.graph] == ["Conv"]
    np.testing.assert_allclose(folded, exact, 0, 1e-5 * np.abs(exact).max())
