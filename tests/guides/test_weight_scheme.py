"""The guide "A weight scheme" of CONTRIBUTING.md: codes of three bits are a member and a row of the table."""

import numpy as np
import onnx
import pytest

import fgq
from fgq.format import container
from fgq.format.packing import pack_codes, per_byte, unpack_codes
from fgq.plan.options import memory_bits
from fgq.quantization.scheme import CODE_SPECS, Codes, CodeSpec, WeightScheme
from fgq.quantization.weights import quantize_weight

RNG = np.random.default_rng(0)
MODEL = """(float[N,3,8,8] x) => (float y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, v)
    d = Relu(c)
    p = GlobalAveragePool(d)
    f = Flatten(p)
    y = Gemm(f, u)
}"""
WEIGHTS = {
    name: RNG.standard_normal(shape).astype(np.float32)
    for name, shape in (("w", (8, 3, 3, 3)), ("v", (8, 8, 3, 3)), ("u", (8, 5)))
}


@pytest.fixture
def int3(monkeypatch):
    """As a contributor would write it: ``INT3 = "int3"`` in `Codes`, and its row."""
    member = str.__new__(Codes, "int3")
    member._name_, member._value_ = "INT3", "int3"
    monkeypatch.setitem(Codes._member_map_, "INT3", member)
    monkeypatch.setitem(Codes._value2member_map_, "int3", member)
    monkeypatch.setattr(Codes, "_member_names_", [*Codes._member_names_, "INT3"])
    monkeypatch.setitem(CODE_SPECS, member, CodeSpec(largest=3, memory_bits=3, planned=False))
    # what is made of the table when the module is loaded
    monkeypatch.setattr(container, "PACKED", (*container.PACKED, member))
    return member


def test_every_member_has_a_row():
    assert set(CODE_SPECS) == set(Codes)


def test_weights_fit_their_codes(int3):
    scheme = WeightScheme(codes=int3, group_size=8)
    tensor = quantize_weight(WEIGHTS["v"], scheme, group_axis=1, channel_axis=0)
    tensor.validate()
    codes = tensor.planes[0].codes
    assert set(np.unique(codes)) == set(range(-3, 4))
    ternary = quantize_weight(WEIGHTS["v"], WeightScheme(group_size=8), group_axis=1, channel_axis=0)
    apart = [np.square(WEIGHTS["v"] - found.dequantize()).sum() for found in (tensor, ternary)]
    assert apart[0] < 0.3 * apart[1]
    assert per_byte(3) == 2
    assert np.array_equal(unpack_codes(pack_codes(codes, 3), codes.shape, 3), codes)
    assert memory_bits(scheme, 64) == 3 + 8 / 8


def test_a_model_converts_and_both_engines_give_the_same_integers(int3, make_model, check_integers):
    feeds = {"x": RNG.standard_normal((4, 3, 8, 8)).astype(np.float32)}
    converted, report = fgq.convert(
        make_model(MODEL, WEIGHTS), calibration=feeds, weights="int3", group_size=4, first_last_int8=False
    )
    assert {layer.scheme.split()[0] for layer in report.layers} == {"int3"}
    onnx.checker.check_model(converted)
    check_integers(converted, feeds)


def test_a_layer_is_trained_with_them(int3):
    torch = pytest.importorskip("torch")
    from fgq.train.fit import dequantized

    scheme = WeightScheme(codes=int3, group_size=4)
    wanted = quantize_weight(WEIGHTS["v"], scheme, group_axis=1, channel_axis=0).dequantize()
    found = dequantized(torch.from_numpy(WEIGHTS["v"]), scheme, group_axis=1, channel_axis=0)
    np.testing.assert_array_equal(found.numpy(), wanted)
