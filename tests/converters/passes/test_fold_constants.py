import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from fgq import convert
from fgq.converters.passes import fold_constants, prepare
from fgq.errors import SizeError

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


DOUBLED = """(float[N,16] x) => (float[N,5] y) {
    a = Concat<axis=0>(w, w)
    b = Concat<axis=0>(a, a)
    c = Concat<axis=0>(b, b)
    s = ReduceSum<keepdims=0>(c)
    h = MatMul(x, w)
    y = Add(h, s)
}"""


@pytest.mark.parametrize("times", [0, 1, 15])
def test_what_is_computed_of_constants_is_bounded(make_model, monkeypatch, times):
    """The Concats make 2, 4 and 8 times the 320 bytes, and the ReduceSum 8 times as many at most."""
    monkeypatch.setattr(fold_constants, "MOST_BYTES", 320 * 22 - 1)
    monkeypatch.setattr(fold_constants, "MOST_TIMES", times)
    with pytest.raises(SizeError, match=r"^model: node '.*': found more than 7039 bytes to compute"):
        convert(make_model(DOUBLED, {"w": WEIGHTS["w"]}), activations="none")


@pytest.mark.parametrize(("least", "times"), [(320 * 22, 0), (0, 22)])
def test_what_is_within_the_bound_is_computed(make_model, monkeypatch, prepared, least, times):
    monkeypatch.setattr(fold_constants, "MOST_BYTES", least)
    monkeypatch.setattr(fold_constants, "MOST_TIMES", times)
    found = prepared(make_model(DOUBLED, {"w": WEIGHTS["w"]}), {"x": normal(2, 16)})
    assert found == {"MatMul": 1, "Add": 1}


def test_casts_count_as_large_as_they_make_their_values(make_model, monkeypatch):
    monkeypatch.setattr(fold_constants, "MOST_TIMES", 0)
    text = "(float[N,16] x) => (float y) { a = Cast<to=11>(half) b = Cast<to=1>(a) y = MatMul(x, b) }"
    model = make_model(text, {"half": WEIGHTS["half"]})
    monkeypatch.setattr(fold_constants, "MOST_BYTES", 80 * 8 + 80 * 4)
    prepare(ir.from_proto(model))
    monkeypatch.setattr(fold_constants, "MOST_BYTES", 80 * 8 + 80 * 4 - 1)
    with pytest.raises(SizeError, match="found more than 959 bytes"):
        prepare(ir.from_proto(model))


def test_too_little_memory_is_said(make_model, monkeypatch):
    def fail(*_):
        raise MemoryError("Unable to allocate 8.00 GiB")

    monkeypatch.setattr(fold_constants, "_evaluate", fail)
    with pytest.raises(SizeError) as caught:
        convert(make_model(DOUBLED, {"w": WEIGHTS["w"]}), activations="none")
    line = "model: found too little memory (Unable to allocate 8.00 GiB), wanted more for it"
    assert str(caught.value) == line
