"""Options from TOML and JSON."""

import json

import pytest

from fgq.config import ConversionConfig, read_config
from fgq.errors import ConfigError

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
