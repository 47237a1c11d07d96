import dataclasses

import pytest

from fgq.errors import ConfigError
from fgq.scheme import (
    INT8_LIMIT,
    WITHOUT_VNNI_LIMIT,
    ActivationScheme,
    Int8Scheme,
    Quantizer,
    TernaryScheme,
)


@pytest.mark.parametrize("group_size", [0, -4])
def test_a_group_holds_at_least_one_weight(group_size):
    with pytest.raises(ConfigError, match=rf"group size: found {group_size}, wanted .* at least 1"):
        TernaryScheme(group_size=group_size)


@pytest.mark.parametrize("limit", [0, -1, 128])
def test_limits_keep_weights_inside_an_int8(limit):
    with pytest.raises(ConfigError, match=rf"alpha limit: found {limit}, wanted 1\.\.127"):
        TernaryScheme(alpha_limit=limit)
    with pytest.raises(ConfigError, match=rf"code limit: found {limit}, wanted 1\.\.127"):
        Int8Scheme(code_limit=limit)


@pytest.mark.parametrize("bits", [0, 1, 2, 7, 16])
def test_activations_have_8_or_4_bits(bits):
    wanted = f"activation bits: found {bits}, wanted 8 or 4"
    with pytest.raises(ConfigError, match=wanted):
        ActivationScheme(bits=bits)
    with pytest.raises(ConfigError, match=wanted):
        Quantizer(scale=1.0, zero_point=0, bits=bits)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_quantizer_has_a_positive_finite_scale(scale):
    with pytest.raises(ConfigError, match="wanted a positive finite number"):
        Quantizer(scale=scale, zero_point=0)


@pytest.mark.parametrize(("bits", "zero_point"), [(8, -1), (8, 256), (4, 16)])
def test_a_zero_point_is_one_of_the_integers(bits, zero_point):
    with pytest.raises(ConfigError, match=f"zero point: found {zero_point}"):
        Quantizer(scale=1.0, zero_point=zero_point, bits=bits)


def test_the_ends_of_every_range_are_allowed():
    assert TernaryScheme(group_size=1, alpha_limit=1).max_code == 1
    assert Int8Scheme(code_limit=127).max_code == 127
    assert [Quantizer(scale=5e-324, zero_point=end, bits=4).highest for end in (0, 15)] == [15, 15]
    assert Quantizer(scale=1.0, zero_point=255).highest == 255


def test_the_largest_code_times_the_largest_alpha_is_an_int8():
    for limit in (1, WITHOUT_VNNI_LIMIT, INT8_LIMIT):
        for scheme in (TernaryScheme(alpha_limit=limit), Int8Scheme(code_limit=limit)):
            assert scheme.max_code * scheme.alpha_limit == limit


def test_two_products_without_vnni_stay_inside_an_int16():
    assert 2 * 255 * WITHOUT_VNNI_LIMIT < 2**15 <= 2 * 255 * (WITHOUT_VNNI_LIMIT + 2)


def test_schemes_are_values():
    assert TernaryScheme(group_size=4) == TernaryScheme(group_size=4) != TernaryScheme(group_size=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        TernaryScheme().group_size = 3
    schemes = (TernaryScheme(group_size=4), Int8Scheme(), ActivationScheme(bits=4))
    assert [str(scheme) for scheme in schemes] == ["ternary N=4", "int8", "int4"]
