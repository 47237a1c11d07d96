import pytest

from fgq.config import Activations, ConversionConfig, Form, Misfit
from fgq.errors import ConfigError
from fgq.quantization.scheme import ActivationScheme, Codes, WeightScheme


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"group_size": 0}, "group_size: found 0, wanted a whole number of 1 to 2147483647"),
        ({"group_size": -64}, "group_size: found -64"),
        ({"group_size": 64.0}, "group_size: found 64.0, wanted a whole number"),
        ({"group_size": True}, "group_size: found True"),
        ({"group_size": "64"}, "group_size: found '64'"),
        ({"group_size": None}, "group_size: found None"),
        ({"weights": "int2"}, "weights: found 'int2', wanted one of ternary, tied, int4, int8"),
        ({"recipe": "best"}, "recipe: found 'best', wanted one of fgq, calibrated, omse"),
        ({"recipe": "omse", "weights": "tied"}, "weights: found tied with the recipe omse"),
        ({"without": "bias"}, "without: found 'bias', wanted a list of steps"),
        ({"group_size": 2**31}, "group_size: found 2147483648, wanted"),
        ({"group_size": 2**70}, "group_size: found a whole number of 71 bits, wanted"),
        (
            {"target_bits": 10**400},
            "target_bits: found a whole number of 1329 bits, wanted a positive number",
        ),
        ({"target_bits": 0}, "target_bits: found 0, wanted a positive number"),
        ({"target_bits": float("inf")}, "target_bits: found inf, wanted a positive number"),
        ({"max_drop": -1e-9}, "max_drop: found -1e-09, wanted a number of at least 0"),
        ({"weights": {}}, "weights: found {}, wanted one of ternary"),
        ({"weights": []}, r"weights: found \[\], wanted one of ternary"),
        ({"granularity": {}}, "granularity: found {}, wanted one of layer"),
        ({"without": ["weights"]}, "without: 0: found 'weights', wanted one of target, residual, feedback"),
        (
            {"recipe": "omse", "granularity": "channel"},
            "granularity: found 'channel', wanted one of layer",
        ),
        ({"granularity": "filter"}, "granularity: found filter without the recipe omse"),
        ({"dual_weights": 0.1}, "dual_weights: found 0.1 without the recipe omse"),
        (
            {"recipe": "omse", "weights": "int8", "granularity": "kernel"},
            "granularity: found kernel for int8 weights, wanted layer or filter",
        ),
        ({"recipe": "omse", "dual_weights": -1}, "dual_weights: found -1, wanted a share"),
        ({"recipe": "omse", "dual_weights": True}, "dual_weights: found True, wanted a share"),
        ({"recipe": "omse", "dual_weights": float("nan")}, "dual_weights: found nan, wanted a share"),
        (
            {"recipe": "omse", "weights": "int8", "dual_weights": 0.1},
            "dual_weights: found 0.1 with weights of int8, wanted int4",
        ),
        ({"dual_activations": 0.1}, "dual_activations: found 0.1 with activations of int8, wanted int4"),
        ({"smooth": "yes"}, "smooth: found 'yes', wanted true or false"),
        ({"activations": "int2"}, "activations: found 'int2', wanted one of int8, int4, int8-dynamic"),
        ({"activations": 8}, "activations: found 8"),
        ({"activations": None}, "activations: found None"),
        ({"form": "Packed"}, "form: found 'Packed', wanted one of packed, int8, inlined"),
        ({"form": ["packed"]}, "form: found .'packed'."),
        ({"group_size_fallback": "pad"}, "group_size_fallback: found 'pad', wanted one of error, ragged"),
        ({"include": 3}, "include: found 3, wanted a regular expression"),
        ({"include": ["conv"]}, "include: found .'conv'."),
        ({"include": "("}, "include: found '.', wanted a regular expression .missing"),
        ({"exclude": "a**"}, "exclude: found .* wanted a regular expression .multiple repeat"),
        (
            {"exclude": "a{99999999999}"},
            "exclude: found .* wanted a regular expression .the repetition number",
        ),
        ({"exclude": "(" * 9999}, "exclude: found .* wanted a regular expression .maximum recursion"),
        ({"first_last_int8": 1}, "first_last_int8: found 1, wanted true or false"),
        ({"first_last_int8": None}, "first_last_int8: found None"),
        ({"x86_without_vnni": "false"}, "x86_without_vnni: found 'false', wanted true or false"),
    ],
)
def test_a_bad_value_is_named_with_what_was_wanted(options, found):
    with pytest.raises(ConfigError, match=found):
        ConversionConfig(**options)


def test_strings_become_choices():
    config = ConversionConfig(activations="int4", form="inlined", group_size_fallback="smaller")
    assert config.activations is Activations.INT4
    assert config.form is Form.INLINED
    assert config.group_size_fallback is Misfit.SMALLER
    assert config == ConversionConfig(
        activations=Activations.INT4, form=Form.INLINED, group_size_fallback=Misfit.SMALLER
    )


def test_the_schemes_follow_from_the_options():
    config = ConversionConfig(group_size=4)
    assert config.weight_scheme == WeightScheme(group_size=4, weight_limit=127)
    assert config.int8 == WeightScheme(codes=Codes.INT8, weight_limit=127)
    assert config.activation_scheme == ActivationScheme(bits=8)
    without = ConversionConfig(x86_without_vnni=True, activations="int4")
    assert (without.weight_scheme.alpha_limit, without.int8.max_code) == (63, 63)
    assert without.activation_scheme == ActivationScheme(bits=4)
    assert ConversionConfig(activations="none").activation_scheme is None


def test_the_codes_follow_from_the_recipe_where_none_are_named():
    assert ConversionConfig().codes is Codes.TERNARY
    assert ConversionConfig(recipe="omse").codes is Codes.INT4
    tied = ConversionConfig(recipe="calibrated", weights="tied")
    assert tied.weight_scheme == WeightScheme(codes=Codes.TIED)
    assert ConversionConfig(weights="int8").weight_scheme == WeightScheme(codes=Codes.INT8)


def test_the_thresholds_of_second_tensors_belong_to_int4():
    omse = ConversionConfig(recipe="omse", activations="int4")
    assert (omse.dual_weights_above, omse.dual_activations_above) == (0.02, 0.05)
    given = ConversionConfig(recipe="omse", activations="int4", dual_weights=0, dual_activations=0.5)
    assert (given.dual_weights_above, given.dual_activations_above) == (0, 0.5)
    assert ConversionConfig(recipe="omse", weights="int8").dual_weights_above is None
    other = ConversionConfig(activations="int4")
    assert (other.dual_weights_above, other.dual_activations_above) == (None, None)


def test_4_bit_activations_are_smoothed_unless_asked_otherwise():
    assert ConversionConfig(activations="int4").smooths
    assert not ConversionConfig(activations="int4", smooth=False).smooths
    assert not ConversionConfig().smooths
    assert ConversionConfig(smooth=True).smooths
