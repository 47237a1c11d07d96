"""Every operator of a block beside onnxruntime."""

import numpy as np
import onnx_ir as ir
import pytest

from fgq.recipes.reconstruct.module import Block, Trained
from fgq.recipes.reconstruct.operators import OPERATORS, unsupported

pytest.importorskip("torch")

IMAGE = np.random.default_rng(0).standard_normal((2, 4, 7, 6)).astype(np.float32)
MATRIX = np.random.default_rng(1).standard_normal((3, 5, 8)).astype(np.float32)
FLAT = np.random.default_rng(2).standard_normal((5, 8)).astype(np.float32)

CASES = {
    "Add": (MATRIX, "y = Add(x, v)"),
    "AveragePool": (IMAGE, "y = AveragePool<kernel_shape=[2,3],strides=[2,1]>(x)"),
    "BatchNormalization": (IMAGE, "y = BatchNormalization<epsilon=0.01>(x, s, t, m, p)"),
    "Cast": (MATRIX, "z = Cast<to=7>(x)\n y = Cast<to=1>(z)"),
    "Clip": (MATRIX, "y = Clip(x, low, high)"),
    "Clip above": (MATRIX, "y = Clip(x, , high)"),
    "Concat": (MATRIX, "y = Concat<axis=-1>(x, x)"),
    "Conv": (IMAGE, "y = Conv<pads=[1,0,2,1],strides=[2,1],dilations=[1,2]>(x, k, b)"),
    "Conv in groups": (IMAGE, 'y = Conv<group=2,auto_pad="SAME_UPPER",strides=[2,2]>(x, g)'),
    "Div": (MATRIX, "y = Div(x, positive)"),
    "Erf": (MATRIX, "y = Erf(x)"),
    "Exp": (MATRIX, "y = Exp(x)"),
    "Expand": (FLAT, "y = Expand(x, wide)"),
    "Flatten": (IMAGE, "y = Flatten<axis=2>(x)"),
    "Gather": (MATRIX, "y = Gather<axis=1>(x, places)"),
    "Gelu": (MATRIX, "y = Gelu(x)"),
    "Gelu by tanh": (MATRIX, 'y = Gelu<approximate="tanh">(x)'),
    "Gemm": (FLAT, "y = Gemm<alpha=0.5,beta=2.0,transB=1>(x, w, c)"),
    "Gemm transposed": (FLAT, "y = Gemm<transA=1>(x, w5)"),
    "GlobalAveragePool": (IMAGE, "y = GlobalAveragePool(x)"),
    "HardSigmoid": (MATRIX, "y = HardSigmoid<alpha=0.3>(x)"),
    "HardSwish": (MATRIX, "y = HardSwish(x)"),
    "Identity": (MATRIX, "y = Identity(x)"),
    "LayerNormalization": (MATRIX, "y = LayerNormalization<epsilon=0.1>(x, v, v)"),
    "LayerNormalization over two axes": (MATRIX, "y = LayerNormalization<axis=1>(x, w5by8)"),
    "LeakyRelu": (MATRIX, "y = LeakyRelu<alpha=0.2>(x)"),
    "MatMul": (MATRIX, "y = MatMul(x, right)"),
    "MaxPool": (IMAGE, "y = MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(x)"),
    "Mul": (MATRIX, "y = Mul(x, v)"),
    "Neg": (MATRIX, "y = Neg(x)"),
    "Pow": (MATRIX, "y = Pow(x, two)"),
    "QuantizeLinear": (MATRIX, "q = QuantizeLinear(x, scale, zero)\n y = DequantizeLinear(q, scale, zero)"),
    "QuantizeLinear to 4 bits": (
        MATRIX,
        "q = QuantizeLinear(x, scale, zero)\n r = Clip(q, zero, top)\n y = DequantizeLinear(r, scale, zero)",
    ),
    "ReduceMean": (MATRIX, "y = ReduceMean<keepdims=0>(x, axes)"),
    "Relu": (MATRIX, "y = Relu(x)"),
    "Reshape": (MATRIX, "y = Reshape(x, sizes)"),
    "Reshape by a shape": (
        MATRIX,
        "a = Shape<end=1>(x)\n size = Concat<axis=0>(a, rest)\n y = Reshape(x, size)",
    ),
    "Sigmoid": (MATRIX, "y = Sigmoid(x)"),
    "Slice": (MATRIX, "y = Slice(x, starts, ends, axes2, steps)"),
    "Softmax": (MATRIX, "y = Softmax<axis=1>(x)"),
    "Sqrt": (np.abs(MATRIX), "y = Sqrt(x)"),
    "Squeeze": (MATRIX, "a = Unsqueeze(x, ends_of)\n y = Squeeze(a, first)"),
    "Squeeze all": (MATRIX, "a = Unsqueeze(x, ends_of)\n y = Squeeze(a)"),
    "Sub": (MATRIX, "y = Sub(v, x)"),
    "Tanh": (MATRIX, "y = Tanh(x)"),
    "Transpose": (MATRIX, "y = Transpose<perm=[2,0,1]>(x)"),
    "Transpose all": (MATRIX, "y = Transpose(x)"),
    "Where": (MATRIX, "y = Where(mask, x, v)"),
}
KNOWN_BY_OTHER_NAMES = {"DequantizeLinear", "Shape", "Unsqueeze"}


def _constants():
    rng = np.random.default_rng(3)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "v": normal(8),
        "positive": np.abs(normal(8)) + 1,
        "k": normal(6, 4, 3, 2),
        "b": normal(6),
        "g": normal(6, 2, 3, 3),
        "w": normal(3, 8),
        "c": normal(3),
        "w5": normal(5, 4),
        "w5by8": normal(5, 8),
        "right": normal(8, 2),
        "s": normal(4),
        "t": normal(4),
        "m": normal(4),
        "p": np.abs(normal(4)) + 1,
        "low": np.float32(-0.5),
        "high": np.float32(0.7),
        "two": np.float32(2),
        "scale": np.float32(0.011),
        "zero": np.uint8(3),
        "top": np.uint8(15),
        "axes": np.array([0, -1]),
        "wide": np.array([2, 1, 8]),
        "places": np.array([[0, -1], [3, 0]]),
        "sizes": np.array([0, -1, 4, 2]),
        "rest": np.array([-1]),
        "starts": np.array([-1, 0]),
        "ends": np.array([-100, 2]),
        "axes2": np.array([2, 1]),
        "steps": np.array([-3, 1]),
        "ends_of": np.array([0, -1]),
        "first": np.array([0]),
        "mask": np.arange(5)[:, None] > 1,
    }


@pytest.mark.parametrize("name", CASES)
def test_operators_are_those_of_onnxruntime(make_model, run, name):
    x, text = CASES[name]
    model = make_model(f"(float{list(x.shape)} x) => (float y) {{ {text} }}", _constants(), opset=20)
    (wanted,) = run(model, {"x": x})
    nodes = list(ir.from_proto(model).graph)
    assert [unsupported(node) for node in nodes] == [None] * len(nodes)
    (found,) = Block(nodes, [str(nodes[-1].outputs[0].name)], Trained({}, {}))({"x": x}, {})
    # float32 sums of some tens of products, in another order
    np.testing.assert_allclose(found.numpy(), wanted, 1e-5, 1e-5)


def test_every_operator_has_a_case():
    assert {name.split()[0] for name in CASES} | KNOWN_BY_OTHER_NAMES == set(OPERATORS)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("y = Mod(x, x)", "the operator Mod"),
        ("y = AveragePool<kernel_shape=[2,2],pads=[1,1,0,0]>(x)", "this form of AveragePool"),
        ("y = MaxPool<kernel_shape=[2,2],ceil_mode=1>(x)", "this form of MaxPool"),
        ("a, y = MaxPool<kernel_shape=[2,2]>(x)", "the second output of MaxPool"),
        ("q = QuantizeLinear(x, s, z)\n y = DequantizeLinear(q, s, z)", "QuantizeLinear with a scale"),
    ],
)
def test_others_are_refused(make_model, text, what):
    constants = {"s": np.ones(4, np.float32), "z": np.zeros(4, np.uint8)}
    model = make_model(f"(float[2,4,7,6] x) => (float y) {{ {text} }}", constants, opset=20)
    assert what in unsupported(ir.from_proto(model).graph[0])
