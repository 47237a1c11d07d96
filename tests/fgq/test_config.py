import json

import pytest

from fgq.config import Activations, ConversionConfig, Form, Misfit, read_config
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
        ({"recipe": "best"}, "recipe: found 'best', wanted one of fgq, calibrated, omse-int4"),
        ({"recipe": "omse-int4", "weights": "tied"}, "weights: found tied with the recipe omse-int4"),
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
            {"recipe": "omse-int4", "granularity": "channel"},
            "granularity: found 'channel', wanted one of layer",
        ),
        ({"granularity": "filter"}, "granularity: found filter without the recipe omse-int4"),
        ({"dual_weights": 0.1}, "dual_weights: found 0.1 without the recipe omse-int4"),
        (
            {"recipe": "omse-int4", "weights": "int8", "granularity": "kernel"},
            "granularity: found kernel for int8 weights, wanted layer or filter",
        ),
        ({"recipe": "omse-int4", "dual_weights": -1}, "dual_weights: found -1, wanted a share"),
        ({"recipe": "omse-int4", "dual_weights": True}, "dual_weights: found True, wanted a share"),
        ({"recipe": "omse-int4", "dual_weights": float("nan")}, "dual_weights: found nan, wanted a share"),
        (
            {"recipe": "omse-int4", "weights": "int8", "dual_weights": 0.1},
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
    assert ConversionConfig(recipe="omse-int4").codes is Codes.INT4
    tied = ConversionConfig(recipe="calibrated", weights="tied")
    assert tied.weight_scheme == WeightScheme(codes=Codes.TIED)
    assert ConversionConfig(weights="int8").weight_scheme == WeightScheme(codes=Codes.INT8)


OPTIONS = {
    "group_size": 4,
    "weights": "tied",
    "recipe": "calibrated",
    "activations": "int4",
    "form": "int8",
    "include": "conv.*",
    "exclude": "^head",
    "group_size_fallback": "error",
    "first_last_int8": False,
    "x86_without_vnni": True,
}


def as_toml(options):
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items())


@pytest.mark.parametrize("dash", [True, False])
@pytest.mark.parametrize(
    ("name", "write"),
    [("a.toml", as_toml), ("a.json", json.dumps), ("A.JSON", json.dumps), ("options", as_toml)],
)
def test_files_hold_every_option_with_either_spelling(tmp_path, name, write, dash):
    written = {key.replace("_", "-") if dash else key: value for key, value in OPTIONS.items()}
    (tmp_path / name).write_text(write(written))
    assert read_config(tmp_path / name) == OPTIONS
    assert ConversionConfig(**read_config(str(tmp_path / name))).group_size == 4


@pytest.mark.parametrize(("name", "text"), [("a.toml", ""), ("a.toml", "# nothing\n"), ("a.json", "{}")])
def test_a_file_may_leave_everything_as_it_is(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert ConversionConfig(**read_config(tmp_path / name)) == ConversionConfig()


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("a.toml", "group_sise = 4", "found the unknown option 'group_sise', wanted one of group_size, w"),
        ("a.toml", "[fgq]\ngroup_size = 4", "found the unknown option 'fgq'"),
        ("a.json", '{"group size": 4}', "found the unknown option 'group size'"),
        ("a.json", '{"group_size": 4, "group-size": 8}', "found the option 'group_size' twice"),
        ("a.toml", "group_size = 4\ngroup_size = 8", "is not valid TOML .Cannot overwrite a value"),
        ("a.toml", "group_size =", "is not valid TOML .Invalid value"),
        ("a.toml", '{"group_size": 4}', "is not valid TOML"),
        ("a.json", "group_size = 4", "is not valid JSON .Expecting value"),
        ("a.json", "", "is not valid JSON"),
        ("a.json", '{"group_size": 4', "is not valid JSON"),
        ("a.json", "[4]", "found a list, wanted a table of options"),
        ("a.json", "null", "found a NoneType, wanted a table of options"),
        ("a.json", "[" * 99_999, "is not valid JSON .maximum recursion"),
        ("a.toml", "a = " + "[" * 9_999, "is not valid TOML .maximum recursion"),
        ("a.json", '{"group_size": ' + "1" * 5_000 + "}", "is not valid JSON .Exceeds the limit"),
        ("a.toml", "group_size = " + "1" * 5_000, "is not valid TOML .Exceeds the limit"),
        ("a.toml", "group_size = 0x" + "f" * 5_000, "group_size: found a whole number of 20000 bits, wanted"),
        ("a.toml", "target_bits = inf", "is not valid TOML .found the number inf, which is not finite"),
        ("a.toml", "target_bits = 1e999", "is not valid TOML .found the number 1e999"),
        ("a.json", '{"target_bits": NaN}', "is not valid JSON .found the number NaN"),
        ("a.json", '{"target_bits": -1e999}', "is not valid JSON .found the number -1e999"),
        ("a.json", '{"target_bits": 1' + "0" * 400 + "}", "target_bits: found a whole number of 1329 bits"),
        (
            "a.json",
            '{"group_size": 4, "group_size": 8}',
            "is not valid JSON .found the name 'group_size' twice",
        ),
        ("a.json", '{"\\ud800": 4}', "is not valid JSON .found the name .*ud800"),
        (
            "a.json",
            '{"include": "\\ud800"}',
            "include: found .*, wanted text without halves of surrogate pairs",
        ),
        ("a.json", '{"weights": {"a": {"b": 1}}}', "weights: found {'a': {'b': 1}}, wanted one of ternary"),
        (
            "a.json",
            '{"include": "' + "a" * 999 + '(" }',
            "include: found 'a{10,40}.{3}a*.', wanted a regular",
        ),
        ("a.toml", "group_size = 2026-12-01", "group_size: found datetime.date.2026, 12, 1., wanted"),
        ("a.toml", "#" * (16 << 10) + "#", "found more than 16384 bytes, wanted at most so many"),
        ("a.toml", "a" + ".a" * 8_000 + " = 1", "found the unknown option 'a', wanted one of group_size"),
    ],
)
def test_a_broken_file_is_refused_with_its_name(tmp_path, name, text, found):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"{name}: {found}"):
        read_config(tmp_path / name)


@pytest.mark.parametrize("name", ["a.toml", "a.json"])
def test_bytes_that_are_not_utf8_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match=f"{name}: cannot be read .it is not UTF-8 text"):
        read_config(tmp_path / name)


@pytest.mark.parametrize("name", ["a.toml", "a.json"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, name):
    text = as_toml(OPTIONS) if name == "a.toml" else json.dumps(OPTIONS)
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert read_config(tmp_path / name) == OPTIONS


def test_no_more_of_a_file_is_read_than_it_may_hold(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match=r"a.json: found more than 16777216 bytes"):
        read_config(tmp_path / "a.json")
    with pytest.raises(ConfigError, match=r"cannot be read .embedded null byte"):
        read_config("a\0.json")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.toml: cannot be read .No such file or directory"):
        read_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"cannot be read .Is a directory"):
        read_config(tmp_path)


def test_the_thresholds_of_second_tensors_belong_to_int4():
    omse = ConversionConfig(recipe="omse-int4", activations="int4")
    assert (omse.dual_weights_above, omse.dual_activations_above) == (0.02, 0.05)
    given = ConversionConfig(recipe="omse-int4", activations="int4", dual_weights=0, dual_activations=0.5)
    assert (given.dual_weights_above, given.dual_activations_above) == (0, 0.5)
    assert ConversionConfig(recipe="omse-int4", weights="int8").dual_weights_above is None
    other = ConversionConfig(activations="int4")
    assert (other.dual_weights_above, other.dual_activations_above) == (None, None)


def test_4_bit_activations_are_smoothed_unless_asked_otherwise():
    assert ConversionConfig(activations="int4").smooths
    assert not ConversionConfig(activations="int4", smooth=False).smooths
    assert not ConversionConfig().smooths
    assert ConversionConfig(smooth=True).smooths
