"""Where networks are cut."""

import numpy as np
import onnx_ir as ir

from fgq.converters.float_layers import Layer, find_layers
from fgq.recipes.reconstruct.blocks import MOST_LAYERS, find_blocks, find_spans

RNG = np.random.default_rng(0)


def weights(**shapes):
    return {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def cut(make_model, text, constants):
    """The outputs of each block, its layers by theirs, and the warnings."""
    model = ir.from_proto(make_model(text, constants, opset=20))
    for place, node in enumerate(model.graph):
        node.name = f"node{place}"
    layers = [layer for layer in find_layers(model) if isinstance(layer, Layer)]
    blocks, warnings = find_blocks(model.graph, layers)
    assert [layer.name for block in blocks for layer in block.layers] == [layer.name for layer in layers]
    found = [
        (
            block.nodes[0].op_type,
            " ".join(str(layer.output.name) for layer in block.layers),
            str(block.nodes[-1].outputs[0].name),
        )
        for block in blocks
    ]
    return found, warnings


def test_residual_blocks_are_whole_and_end_behind_their_relu(make_model):
    text = """(float[1,4,6,6] x) => (float y) {
        a = Conv<pads=[1,1,1,1]>(x, w)
        b = Relu(a)
        p = MaxPool<kernel_shape=[2,2]>(b)
        c = Conv<pads=[1,1,1,1]>(p, w)
        d = Relu(c)
        e = Conv<pads=[1,1,1,1]>(d, w)
        s = Conv(p, v)
        f = Add(e, s)
        g = Relu(f)
        h = GlobalAveragePool(g)
        i = Flatten(h)
        y = Gemm(i, u)
    }"""
    found, warnings = cut(make_model, text, weights(w=(4, 4, 3, 3), v=(4, 4, 1, 1), u=(4, 3)))
    assert found == [("Conv", "a", "b"), ("Conv", "c e s", "g"), ("Gemm", "y", "y")]
    assert not warnings


ATTENTION = """
        {q} = MatMul({x}, w)
        {q}k = MatMul({x}, w)
        {q}t = Transpose<perm=[0,2,1]>({q}k)
        {q}s = MatMul({q}, {q}t)
        {q}m = Add({q}s, mask)
        {q}p = Softmax({q}m)
        {q}v = MatMul({x}, w)
        {q}o = MatMul({q}p, {q}v)
        {q}w = MatMul({q}o, w)
        {q}r = Add({q}w, {residual})
"""


def test_sublayers_with_normalizations_behind_them(make_model):
    """The mask, which every sublayer reads, passes the cuts."""
    text = (
        "(float[1,T,8] z, float[1,T,T] given) => (float y) { mask = Neg(given)\n x = LayerNormalization(z, g)"
        + ATTENTION.format(x="x", q="a", residual="x")
        + "n = LayerNormalization(ar, g)"
        + ATTENTION.format(x="n", q="b", residual="n")
        + "y = LayerNormalization(br, g) }"
    )
    found, warnings = cut(make_model, text, weights(w=(8, 8), g=(8,)))
    assert found == [("MatMul", "a ak av aw", "n"), ("MatMul", "b bk bv bw", "y")]
    assert not warnings


def test_sublayers_with_normalizations_before_them(make_model):
    text = (
        "(float[1,T,8] x, float[1,T,T] mask) => (float y) { i = MatMul(x, w) \n n = LayerNormalization(i, g)"
        + ATTENTION.format(x="n", q="a", residual="i")
        + "m = LayerNormalization(ar, g)\n"
        + "f = MatMul(m, w)\n h = Gelu(f)\n e = MatMul(h, w)\n y = Add(e, ar) }"
    )
    found, _ = cut(make_model, text, weights(w=(8, 8), g=(8,)))
    assert found == [
        ("MatMul", "i", "i"),
        ("LayerNormalization", "a ak av aw", "ar"),
        ("LayerNormalization", "f e", "y"),
    ]


def test_an_unknown_operator_leaves_the_layers_of_its_block(make_model):
    text = """(float[3,8] x) => (float y) {
        a = MatMul(x, w)
        b = Add(a, c)
        m = Mod<fmod=1>(b, c)
        d = MatMul(m, w)
        y = Add(d, x)
    }"""
    found, warnings = cut(make_model, text, weights(w=(8, 8), c=(8,)))
    assert found == [("MatMul", "a", "b"), ("MatMul", "d", "d")]
    assert warnings == [
        "node0: reconstructed layer by layer with the 1 that follow, as their block holds the operator Mod"
    ]


def test_long_stretches_are_no_blocks(make_model):
    lines = [f"v{place + 1} = MatMul(v{place}, w)" for place in range(MOST_LAYERS + 1)]
    body = "\n".join(["v0 = Identity(x)", *lines, f"y = Add(v{MOST_LAYERS + 1}, x)"])
    found, warnings = cut(
        make_model, f"(float[3,8] x) => (float y) {{ z = MatMul(x, w)\n {body} }}", weights(w=(8, 8))
    )
    assert len(found) == MOST_LAYERS + 2
    assert f"more than {MOST_LAYERS} layers" in warnings[0]


def spans(make_model, text, arrays):
    graph = ir.from_proto(make_model(text, arrays, opset=20)).graph
    layers = [layer for layer in find_layers(ir.Model(graph, ir_version=10)) if isinstance(layer, Layer)]
    found = find_spans(graph, find_blocks(graph, layers)[0])
    return [" ".join(str(end.outputs[0].name) for end in span.ends) for span in found], found


def test_blocks_that_follow_one_another_are_joined_with_what_is_between(make_model):
    text = """(float[3,8] x) => (float y) {
        a = MatMul(x, w)
        b = Relu(a)
        c = Neg(b)
        d = MatMul(c, w)
        e = Relu(d)
        m = Mod<fmod=1>(e, b0)
        f = MatMul(m, w)
        g = Relu(f)
        h = MatMul(g, w)
        y = Relu(h)
    }"""
    ends, found = spans(make_model, text, weights(w=(8, 8), b0=(8,)))
    assert ends == ["b e", "g y"]
    assert [node.op_type for node in found[0].nodes] == ["MatMul", "Relu", "Neg", "MatMul", "Relu"]
    assert all(span.whole and len(span.layers) == 2 for span in found)


def test_one_block_is_no_span(make_model):
    text = "(float[3,8] x) => (float y) { a = MatMul(x, w)\n b = Relu(a)\n y = Mod<fmod=1>(b, c) }"
    assert spans(make_model, text, weights(w=(8, 8), c=(8,)))[0] == []
