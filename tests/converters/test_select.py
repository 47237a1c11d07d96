import numpy as np
import pytest

from fgq import convert
from fgq.config import ConversionConfig, Misfit
from fgq.converters.float_layers import find_layers
from fgq.converters.passes import prepare
from fgq.converters.reader import read_float_model
from fgq.converters.select import Choice, choose_schemes
from fgq.errors import ConfigError, ModelError
from fgq.eval.light_models import light_model
from fgq.quantization.scheme import Codes, WeightScheme


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


NETWORK = """(float[N,3,8,8] x) => (float y) {
    a = Conv(x, w0)
    b = Relu(a)
    c = Conv<group=10>(b, w1)
    d = Conv(c, w2)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    g = Gemm<transB=1>(f, w3)
    h = Relu(g)
    i = Gemm<transB=1>(h, w4)
    y = Softmax(i)
}"""
WEIGHTS = {"w0": normal(10, 3, 3, 3), "w1": normal(10, 1, 3, 3), "w2": normal(10, 10, 1, 1)}
WEIGHTS |= {"w3": normal(10, 10), "w4": normal(5, 10)}
FEEDS = {"x": normal(4, 3, 8, 8)}
ROUNDING = 1e-6
"""Between softmaxes in float, as a share of the largest value: each engine has an exponential of its own."""


def choose(model, **options):
    read = read_float_model(model)
    prepare(read)
    return choose_schemes(read, find_layers(read), ConversionConfig(**options))


def described(chosen):
    return [
        (str(entry.weights), entry.note) if isinstance(entry, Choice) else entry.reason for entry in chosen
    ]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(NETWORK, WEIGHTS)


def test_first_last_and_depthwise_are_int8(model):
    assert [str(entry.weights) for entry in choose(model, group_size=5)] == [
        "int8",
        "int8",
        "ternary N=5",
        "ternary N=5",
        "int8",
    ]
    assert [str(entry.weights) for entry in choose(model, group_size=5, first_last_int8=False)] == [
        "ternary N=3",
        "int8",
        "ternary N=5",
        "ternary N=5",
        "ternary N=5",
    ]


MEASURED = """(float[N,4,4,3] x) => (float y) {
    a = MatMul(x, e)
    s = Shape(x)
    n = Slice(s, zero, one)
    t = Concat<axis=0>(n, rest)
    g = Expand(gain, t)
    b = Mul(a, g)
    c = Transpose<perm=[0,3,1,2]>(b)
    y = Conv(c, w)
}"""


def test_a_size_of_an_input_is_no_way_for_its_data(make_model):
    """A convolution that it leads to is not the first one."""
    weights = {"e": normal(3, 8), "w": normal(8, 8, 3, 3), "gain": normal(1, 4, 4, 8)}
    sizes = {"zero": np.int64([0]), "one": np.int64([1]), "rest": np.int64([4, 4, 8])}
    chosen = choose(make_model(MEASURED, weights | sizes), group_size=4)
    assert [(entry.layer.op_type, str(entry.weights)) for entry in chosen] == [
        ("MatMul", "ternary N=3"),
        ("Conv", "ternary N=4"),
    ]


def test_group_size_that_does_not_fit(model, check_integers):
    schemes = {
        fallback: [entry.weights for entry in choose(model, group_size=4, group_size_fallback=fallback)[2:4]]
        for fallback in (Misfit.RAGGED, Misfit.SMALLER)
    }
    assert schemes == {
        Misfit.RAGGED: [WeightScheme(group_size=4)] * 2,
        Misfit.SMALLER: [WeightScheme(group_size=2)] * 2,
    }
    with pytest.raises(ConfigError, match="found 10 input channels, wanted a multiple of the group size 4"):
        choose(model, group_size=4, group_size_fallback=Misfit.ERROR)
    for fallback in (Misfit.RAGGED, Misfit.SMALLER):
        result = convert(model, calibration=FEEDS, group_size=4, group_size_fallback=fallback)
        check_integers(result.model, FEEDS, ROUNDING)


def test_include_and_exclude(model):
    names = [entry.layer.name for entry in choose(model)]
    assert len(set(names)) == 5
    only = choose(model, include=f"^{names[2]}$", group_size=5)
    assert [isinstance(entry, Choice) for entry in only] == [False, False, True, False, False]
    assert only[0].reason == f"not included by '^{names[2]}$'"
    without = choose(model, exclude=f"^({names[0]}|{names[4]})$", group_size=5)
    assert [isinstance(entry, Choice) for entry in without] == [False, True, True, True, False]
    both = choose(model, include="node", exclude=f"^{names[1]}$")
    assert [isinstance(entry, Choice) for entry in both] == [True, False, True, True, True]
    with pytest.raises(ConfigError, match="--exclude 'nowhere': found no layer of that name"):
        choose(model, exclude="nowhere")
    with pytest.raises(ModelError, match="found no layer to convert"):
        convert(model, exclude=".", calibration=FEEDS)


def test_excluded_layers_keep_their_weights(model, run):
    names = [entry.layer.name for entry in choose(model)]
    result = convert(model, calibration=FEEDS, include=f"^{names[2]}$", group_size=5)
    kept = {tuple(t.dims) for t in result.model.graph.initializer if t.data_type == 1 and len(t.dims) > 1}
    assert kept == {(10, 3, 3, 3), (10, 1, 3, 3), (10, 10), (5, 10)}


def test_without_vnni_no_pair_of_products_saturates(model, check_integers):
    schemes = [entry.weights for entry in choose(model, x86_without_vnni=True, group_size=5)]
    assert schemes[0] == WeightScheme(codes=Codes.INT8, weight_limit=63)
    assert schemes[2] == WeightScheme(group_size=5, weight_limit=63)
    result = convert(model, calibration=FEEDS, x86_without_vnni=True, group_size=5, form="int8")
    weights = [t for t in result.model.graph.initializer if t.data_type == 3 and t.name.endswith(".w8")]
    assert len(weights) == 5
    for tensor in weights:
        assert np.abs(np.frombuffer(tensor.raw_data, np.int8).astype(int)).max() <= 63
    check_integers(result.model, FEEDS, ROUNDING)


def test_encoder_without_a_head_has_no_last_layer(make_model):
    text = """(float[N,T,16] x) => (float y) {
        a = MatMul(x, w)
        b = Add(a, x)
        y = LayerNormalization<axis=-1>(b, k)
    }"""
    assert described(choose(make_model(text, {"w": normal(16, 16), "k": normal(16)}), group_size=4)) == [
        ("ternary N=4", "")
    ]


@pytest.mark.parametrize(
    ("name", "last"),
    [("light_squeezenet", None), ("light_resnet50", "Gemm"), ("light_inception_v1", "Gemm")],
)
def test_first_and_last_of_real_networks(name, last):
    """SqueezeNet ends in a convolution: its rule names no last matrix product."""
    chosen = choose(light_model(name))
    notes = [entry.note.split(";")[0] for entry in chosen]
    assert notes.count("first convolution") == 1
    assert notes[0] == "first convolution"
    assert notes.count("last matrix product") == (last is not None)
    if last:
        assert chosen[-1].layer.op_type == last
        assert notes[-1] == "last matrix product"


def test_shufflenet_has_depthwise_and_grouped_layers():
    chosen = choose(light_model("light_shufflenet"))
    depthwise = [entry for entry in chosen if entry.layer.is_depthwise]
    assert len(depthwise) == 16
    assert all(entry.note == "depthwise" for entry in depthwise)
    assert all(entry.weights.codes is Codes.INT8 for entry in depthwise)
