import dataclasses

import pytest

from fgq.errors import ConfigError
from fgq.quantization.scheme import (
    INT8_LIMIT,
    WITHOUT_VNNI_LIMIT,
    ActivationScheme,
    Codes,
    Quantizer,
    WeightScheme,
)


@pytest.mark.parametrize("group_size", [0, -4, 2**31, 10**30])
def test_a_group_holds_at_least_one_weight(group_size):
    with pytest.raises(ConfigError, match=rf"group size: found {group_size}, wanted .* 1 to 2147483647"):
        WeightScheme(group_size=group_size)


@pytest.mark.parametrize("limit", [0, -1, 128])
def test_limits_keep_weights_inside_an_int8(limit):
    for codes, least in zip(Codes, (1, 4, 7, 1, 1), strict=True):
        with pytest.raises(ConfigError, match=rf"weight limit: found {limit}, wanted {least}\.\.127"):
            WeightScheme(codes=codes, weight_limit=limit)


def test_the_limit_of_alpha_follows_from_the_largest_code():
    schemes = [WeightScheme(codes=codes) for codes in Codes]
    assert [(scheme.max_code, scheme.alpha_limit) for scheme in schemes] == [
        (1, 127),
        (4, 31),
        (7, 18),
        (127, 1),
        (112, 1),
    ]
    assert WeightScheme(codes=Codes.INT4, weight_limit=WITHOUT_VNNI_LIMIT).alpha_limit == 9


def test_a_group_is_no_longer_than_what_there_is():
    assert WeightScheme(group_size=4).group_length(10) == 4
    assert WeightScheme(group_size=64).group_length(10) == 10
    assert WeightScheme(codes=Codes.INT8, group_size=4).group_length(10) == 10


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
    assert WeightScheme(group_size=1, weight_limit=1).max_code == 1
    assert WeightScheme(codes=Codes.INT8, weight_limit=127).max_code == 127
    assert [Quantizer(scale=5e-324, zero_point=end, bits=4).highest for end in (0, 15)] == [15, 15]
    assert Quantizer(scale=1.0, zero_point=255).highest == 255


def test_the_largest_code_times_the_largest_alpha_is_an_int8():
    for limit in (1, WITHOUT_VNNI_LIMIT, INT8_LIMIT):
        for codes in (Codes.TERNARY, Codes.INT8):
            scheme = WeightScheme(codes=codes, weight_limit=limit)
            assert scheme.max_code * scheme.alpha_limit == limit
    for scheme in (WeightScheme(codes=codes) for codes in Codes):
        assert scheme.max_code * scheme.alpha_limit <= INT8_LIMIT < scheme.max_code * (scheme.alpha_limit + 1)


def test_two_products_without_vnni_stay_inside_an_int16():
    assert 2 * 255 * WITHOUT_VNNI_LIMIT < 2**15 <= 2 * 255 * (WITHOUT_VNNI_LIMIT + 2)


def test_schemes_are_values():
    assert WeightScheme(group_size=4) == WeightScheme(group_size=4) != WeightScheme(group_size=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        WeightScheme().group_size = 3
    schemes = (
        WeightScheme(group_size=4),
        WeightScheme(codes=Codes.TIED),
        WeightScheme(codes=Codes.INT4, group_size=16),
        WeightScheme(codes=Codes.INT8),
        ActivationScheme(bits=4),
    )
    assert [str(scheme) for scheme in schemes] == ["ternary N=4", "tied N=64", "int4 N=16", "int8", "int4"]
