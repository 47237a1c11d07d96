import numpy as np
import pytest
from onnx import numpy_helper

RNG = np.random.default_rng(0)
ROWS, K, M = 3, 16, 5
ADDENDS = {
    "none": None,
    "scalar": (),
    "one": (1,),
    "row": (M,),
    "1 x row": (1, M),
    "one row and column": (1, 1),
    "column": (ROWS, 1),
    "full": (ROWS, M),
}


def normal(*shape):
    return np.asarray(RNG.standard_normal(shape), np.float32)


def gemm(make_model, operands, weights, alpha=1.0, beta=1.0, before=""):
    product = f"y = Gemm<alpha={alpha}, beta={beta}>({operands})"
    return make_model(f"(float[{ROWS},{K}] x, float c0) => (float y) {{ {before} {product} }}", weights)


@pytest.mark.parametrize("alpha", [1.0, -0.5])
@pytest.mark.parametrize("beta", [1.0, 0.0, -2.0])
@pytest.mark.parametrize("addend", ADDENDS)
def test_constant_addend(make_model, prepared, addend, alpha, beta):
    weights = {"w": normal(K, M)}
    shape = ADDENDS[addend]
    if shape is not None:
        weights["c"] = normal(*shape)
    model = gemm(make_model, ", ".join(["x", *weights]), weights, alpha, beta)
    found = prepared(model, {"x": normal(ROWS, K), "c0": normal()})
    along_rows = addend in ("column", "full") and beta != 0
    assert found == {"Gemm": 1} | ({"Add": 1} if along_rows else {}) | (
        {"Mul": 1} if along_rows and beta != 1 else {}
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_addend_times_zero_is_nothing(make_model, prepared, value):
    weights = {"w": normal(K, M), "c": np.full(M, value, np.float32)}
    feeds = {"x": normal(ROWS, K), "c0": np.array(value, np.float32)}
    for operands in ("x, w, c", "x, w, c0"):
        assert prepared(gemm(make_model, operands, weights, beta=0.0), feeds) == {"Gemm": 1}


@pytest.mark.parametrize("beta", [1.0, -2.0])
@pytest.mark.parametrize("addend", ["c0", "Neg(c0)"])
def test_computed_addend(make_model, prepared, addend, beta):
    before = "" if addend == "c0" else f"c = {addend}"
    model = gemm(
        make_model, f"x, w, {'c' if before else 'c0'}", {"w": normal(K, M)}, beta=beta, before=before
    )
    found = prepared(model, {"x": normal(ROWS, K), "c0": normal()})
    assert found["Add"] == 1
    assert found["Mul"] == (beta != 1)


def test_addend_is_the_product_of_another_gemm(make_model, prepared):
    text = f"""(float[{ROWS},{K}] x) => (float y, float p) {{
        p = Gemm(x, w, b)
        y = Gemm<alpha=0.5>(x, w, p)
    }}"""
    found = prepared(make_model(text, {"w": normal(K, M), "b": normal(M)}), {"x": normal(ROWS, K)})
    assert found == {"Gemm": 2, "Add": 1}


def test_computed_weights_stay(make_model, prepared):
    text = f"(float[{ROWS},{K}] x) => (float y) {{ y = Gemm<transB=1, alpha=0.5>(x, x) }}"
    assert prepared(make_model(text), {"x": normal(ROWS, K)}) == {"Gemm": 1}


def test_shared_weights_keep_their_values(make_model, prepared):
    """One matrix read with and without a factor, and along both axes."""
    text = """(float[3,5] x) => (float y, float z, float u) {
        y = Gemm<alpha=0.5>(x, w, b)
        z = Gemm<beta=3.0, transB=1>(x, w, b)
        u = MatMul(x, w)
    }"""
    model = make_model(text, {"w": normal(5, 5), "b": normal(5)})
    found = prepared(model, {"x": normal(3, 5)})
    assert found == {"Gemm": 2, "MatMul": 1}
    assert numpy_helper.to_array(model.graph.initializer[0]).shape == (5, 5)
