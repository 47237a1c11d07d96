"""Pieces of a network against the whole, in onnxruntime."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.errors import DataError, ModelError, OutputError
from fgq.recipes.pieces import Piece, Prefix, Replacement, _on_disk

TEXT = """(float[N,4] x) => (float y, float r) {
    a = MatMul(x, w)
    r = Relu(a)
    t = Constant<value_float=2.0>()
    b = Mul(r, t)
    c = MatMul(b, v)
    y = Add(c, r)
}"""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(4, 5), "v": normal(5, 5)}
FEEDS = [{"x": normal(3, 4)}, {"x": normal(2, 4, seed=1)}]


@pytest.fixture
def model(make_model):
    return ir.from_proto(make_model(TEXT, WEIGHTS))


def node(model, output):
    return next(node for node in model.graph if node.outputs[0].name == output)


@pytest.mark.parametrize("held", [0, 100, 1 << 30])
def test_values_are_those_of_the_whole_and_nothing_else_is_kept(model, make_model, run, monkeypatch, held):
    monkeypatch.setattr("fgq.recipes.pieces.HELD_BYTES", held)
    prefix = Prefix(model, FEEDS, {})
    whole = make_model(TEXT.replace("float r)", "float r, float b, float c)"), WEIGHTS)
    for output, kept in (("a", {"x"}), ("c", {"b", "r"}), ("y", {"c", "r"}), ("y", {"c", "r"})):
        prefix.advance(node(model, output))
        for values, feed in zip(prefix.batches, FEEDS, strict=True):
            assert set(values) == kept
            expected = dict(zip(("y", "r", "b", "c"), run(whole, feed), strict=True)) | feed
            assert held or all(isinstance(array, np.memmap) for array in values.values())
            for name in kept:
                np.testing.assert_array_equal(values[name], expected[name])


def test_replaced_weights_are_read_from_the_moment_they_are_known(model, run, make_model):
    replaced = {}
    prefix = Prefix(model, FEEDS, replaced)
    prefix.advance(node(model, "a"))
    other = normal(4, 5, seed=9)
    replaced[node(model, "a")] = Replacement(1, other)
    prefix.advance(node(model, "y"))
    expected = run(make_model(TEXT, WEIGHTS | {"w": other}), FEEDS[0])
    y = Piece(model, [node(model, "y")], ["y"])(prefix.batches[0])["y"]
    np.testing.assert_array_equal(y, expected[0])


def test_a_weight_that_two_nodes_share_is_replaced_in_one(make_model, run):
    text = "(float[N,4] x) => (float y) { a = MatMul(x, w)\n y = MatMul(a, w) }"
    w, other = normal(4, 4), normal(4, 4, seed=3)
    model = ir.from_proto(make_model(text, {"w": w}))
    first, second = model.graph
    found = Piece(model, [first, second], ["y"], {second: Replacement(1, other)})(FEEDS[0])["y"]
    np.testing.assert_allclose(found, FEEDS[0]["x"] @ w @ other, rtol=1e-5, atol=1e-6)


def test_values_that_subgraphs_read_are_kept(make_model, run):
    text = """(float[3,4] x, bool p) => (float y) {
        a = MatMul(x, w)
        b = Relu(a)
        y = If (p) <then_branch = yes () => (float[3,4] f) { f = Add(b, a) },
                    else_branch = no () => (float[3,4] g) { g = Mul(b, w2) }>
    }"""
    weights = {"w": normal(4, 4), "w2": normal(3, 4)}
    model = ir.from_proto(make_model(text, weights))
    feed = {"x": normal(3, 4), "p": np.array(True)}
    prefix = Prefix(model, [feed], {})
    last = node(model, "y")
    prefix.advance(last)
    assert set(prefix.batches[0]) == {"a", "b", "p"}
    for truth in (True, False):
        values = prefix.batches[0] | {"p": np.array(truth)}
        expected = run(make_model(text, weights), feed | {"p": np.array(truth)})[0]
        np.testing.assert_array_equal(Piece(model, [last], ["y"])(values)["y"], expected)


def test_refusals_say_what_happened(model, make_model):
    unknown = ir.from_proto(make_model("(float[N] x) => (float y) { y = Nothing(x) }"))
    with pytest.raises(ModelError, match="a piece of the prepared graph: onnxruntime refuses it"):
        Piece(unknown, list(unknown.graph), ["y"])({"x": normal(3)})
    with pytest.raises(DataError, match="a layer cannot run on them"):
        Piece(model, [node(model, "a")], ["a"])({"x": normal(3, 7)})


def test_values_beyond_memory_on_a_full_disk(monkeypatch):
    """They are written, as a page that is only mapped ends the process where no disk is left for it."""
    values = np.arange(5000, dtype=np.float32).reshape(50, 100)
    np.testing.assert_array_equal(_on_disk(values.T), values.T)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: open("/dev/full", "r+b"))
    with pytest.raises(OutputError, match=r"temporary files: cannot be written .No space left"):
        _on_disk(values)
