import numpy as np
import pytest
from onnx import helper

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS = {
    "w": normal(16, 5),
    "t": normal(5, 16),
    "flat": normal(80),
    "four": normal(1, 16, 5, 1),
    "half": normal(16, 5).astype(np.float16),
    "double": normal(16, 5).astype(np.float64),
    "shape": np.array([16, 5]),
    "ends": np.array([0, 3]),
    "first": np.array([0]),
}
BODIES = {
    "Transpose": "k = Transpose(t)",
    "Transpose with an order": "k = Transpose<perm=[1,0]>(t)",
    "Reshape": "k = Reshape(flat, shape)",
    "Reshape by a constant": "s = Constant<value_ints=[16,-1]>()\n k = Reshape(flat, s)",
    "Squeeze": "k = Squeeze(four, ends)",
    "Squeeze of every 1": "k = Squeeze(four)",
    "Unsqueeze and Squeeze": "a = Unsqueeze(w, first)\n k = Squeeze(a, first)",
    "Flatten": "k = Flatten<axis=2>(four)",
    "Identity": "a = Identity(w)\n k = Identity(a)",
    "Cast of half": "k = Cast<to=1>(half)",
    "Cast of double": "k = Cast<to=1>(double)",
    "a chain": "a = Transpose(t)\n b = Reshape(a, shape)\n c = Cast<to=11>(b)\n k = Cast<to=1>(c)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_layout_operators_on_weights_disappear(make_model, prepared, body):
    model = make_model(f"(float[3,16] x) => (float y) {{ {body}\n y = MatMul(x, k) }}", WEIGHTS)
    assert prepared(model, {"x": normal(3, 16)}) == {"MatMul": 1}


@pytest.mark.parametrize(
    ("to", "folded"), [(10, True), (16, True), (6, True), (9, True), (8, False), (17, False), (22, False)]
)
def test_a_cast_disappears_where_onnxruntime_rounds_as_the_reference(make_model, prepared, to, folded):
    """Not to text, float8 or int4."""
    model = make_model(
        f"(float[3,16] x) => (float y) {{ a = Cast<to={to}>(w) k = Cast<to=1>(a) y = MatMul(x, k) }}",
        {"w": 3 * normal(16, 5)},
        opset=21,
        ir_version=10,
    )
    assert ("Cast" not in prepared(model, {"x": normal(3, 16)})) == folded


ARITHMETIC = {
    "weight normalization": "n = ReduceL2<axes=[0], keepdims=1>(w)\n u = Div(w, n)\n k = Mul(u, gain)",
    "online ternarization": """a = Abs(w)
        m = ReduceMean<keepdims=0>(a)
        s = Reciprocal(m)
        b = Mul(w, s)
        c = Round(b)
        d = Clip(c, low, high)
        k = Div(d, s)""",
    "parts": "a = Slice(t, first, ends, first)\n b = Concat<axis=0>(t, a)\n c = Transpose(b)\n k = Neg(c)",
}


@pytest.mark.parametrize("body", ARITHMETIC.values(), ids=ARITHMETIC)
def test_arithmetic_on_weights_disappears(make_model, prepared, body):
    weights = WEIGHTS | {"gain": normal(5), "low": np.float32(-1), "high": np.float32(1)}
    weights["ends"] = np.array([0]) if "Slice" in body else weights["ends"]
    model = make_model(f"(float[3,16] x) => (float y) {{ {body}\n y = MatMul(x, k) }}", weights)
    assert prepared(model, {"x": normal(3, 16)}) == {"MatMul": 1}


@pytest.mark.parametrize(
    ("body", "stays"),
    [
        ("a = Mul(flat2, flat3)\n k = ReduceSum<keepdims=0>(a, first)", "Mul"),  # larger than what it reads
        ("k = Sin(w)", "Sin"),
        ("a = Add(double, double)\n k = Cast<to=1>(a)", "Add"),
    ],
)
def test_other_operators_stay(make_model, prepared, body, stays):
    weights = WEIGHTS | {"flat2": normal(4, 16, 1), "flat3": normal(1, 1, 5)}
    model = make_model(f"(float[3,16] x) => (float y) {{ {body}\n y = MatMul(x, k) }}", weights)
    assert prepared(model, {"x": normal(3, 16)})[stays] == 1


def test_constant_that_is_an_output(make_model, prepared):
    text = "(float[3,16] x) => (float y, float k) { k = Transpose(t)\n y = MatMul(x, k) }"
    assert prepared(make_model(text, WEIGHTS), {"x": normal(3, 16)}) == {"MatMul": 1, "Transpose": 1}


def test_weight_that_is_an_output(make_model, prepared):
    text = "(float[3,16] x) => (float y, float w) { y = MatMul(x, w) }"
    assert prepared(make_model(text, WEIGHTS), {"x": normal(3, 16)}) == {"MatMul": 1}


def test_constants_of_subgraphs(make_model, prepared):
    text = """(float[3,16] x, bool p) => (float y) {
        k = Transpose(t)
        y = If(p) <
            then_branch = one () => (float a) { a = MatMul(x, k) },
            else_branch = two () => (float b) {
                c = Constant<value = float[1] {2.0}>()
                d = MatMul(x, w)
                b = Mul(d, c)
            }
        >
    }"""
    for flag in (True, False):
        found = prepared(make_model(text, WEIGHTS), {"x": normal(3, 16), "p": np.array(flag)})
        assert found == {"If": 1, "MatMul": 2, "Mul": 1}


def test_constants_of_functions(make_model, prepared):
    model = make_model(
        "(float[3,16] x) => (float y) { k = local.Weight(t)\n y = local.Product(x, k) }",
        WEIGHTS,
        domains='"local" : 1',
    )
    imports = [helper.make_opsetid("", 17)]
    model.functions.extend(
        [
            helper.make_function(
                "local", "Weight", ["a"], ["b"], [helper.make_node("Transpose", ["a"], ["b"])], imports
            ),
            helper.make_function(
                "local",
                "Product",
                ["a", "b"],
                ["c"],
                [helper.make_node("MatMul", ["a", "b"], ["c"])],
                imports,
            ),
        ]
    )
    assert prepared(model, {"x": normal(3, 16)}) == {"MatMul": 1}
