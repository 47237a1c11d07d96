"""Names of recipes come from the folder of their modules."""

import subprocess
import sys

import pytest

from fgq.config import ConversionConfig, Recipe, read_config, recipes
from fgq.errors import ConfigError


def test_each_module_is_a_member():
    assert [str(recipe) for recipe in Recipe] == ["fgq", "calibrated", "omse", "reconstruct"]
    assert Recipe.OMSE is Recipe("omse")


def test_a_new_module_is_a_new_name(monkeypatch, tmp_path):
    for name in ("__init__", "two_words", "fgq", "alone"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setattr(recipes, "_FOLDER", str(tmp_path))
    assert recipes._names() == ["fgq", "alone", "two-words"]


def test_no_recipe_is_loaded_for_its_name():
    script = "import sys, fgq.config; print([name for name in sys.modules if name.startswith('fgq.recipes')])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_former_name_is_taken(tmp_path):
    assert Recipe("omse-int4") is Recipe.OMSE
    assert ConversionConfig(recipe="omse-int4") == ConversionConfig(recipe="omse")
    (tmp_path / "options.toml").write_text('recipe = "omse-int4"')
    assert ConversionConfig(**read_config(tmp_path / "options.toml")).recipe is Recipe.OMSE


@pytest.mark.parametrize("value", ["OMSE", "omse_int4", "", None, 3, [], {}])
def test_no_other_name_is(value):
    with pytest.raises(ValueError, match="is not a valid Recipe"):
        Recipe(value)
    if value is not None:
        with pytest.raises(ConfigError, match="wanted one of fgq, calibrated, omse, reconstruct"):
            ConversionConfig(recipe=value)
