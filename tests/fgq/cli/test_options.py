"""Options of a conversion on the command line, made from the configuration."""

import re
from dataclasses import dataclass, fields
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from fgq.cli.options import expands_groups, takes_conversion_options
from fgq.config import Activations, ConversionConfig, Recipe, Step

given: dict[str, Any] = {}


@takes_conversion_options(before={"form": ("here",)})
def every(place: str, *, here: int = 0, end: bool = False, **options: Any) -> None:
    """Take all of them."""
    given.clear()
    given.update(options)


@takes_conversion_options("group_size", "smooth")
def some(**options: Any) -> None:
    """Take two of them."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two options."""

    first: Annotated[int, typer.Option(help="One.")] = 1
    second: Annotated[list[str] | None, typer.Option(help="Two.")] = None


@expands_groups
def grouped(place: str, *, before: int = 0, pair: Pair, after: bool = False) -> None:
    """Take two options as one parameter."""
    given.clear()
    given.update(place=place, before=before, pair=pair, after=after)


def run(command, *arguments):
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    return CliRunner().invoke(app, arguments)


def listed(command):
    return re.findall(r"^ +(--[a-z0-9-]+)", run(command, "--help").output, re.MULTILINE)


def test_they_stand_in_the_order_of_the_fields_with_a_commands_own_among_them():
    names = [f"--{field.name.replace('_', '-')}" for field in fields(ConversionConfig)]
    names.insert(names.index("--form"), "--here")
    assert [name for name in listed(every) if name in names] == names
    assert [name for name in listed(some) if name in names] == ["--group-size", "--smooth"]


def test_what_is_not_given_is_not_passed_on():
    assert run(every, "x").exit_code == 0
    assert given == {}


def test_what_is_given_makes_a_configuration():
    done = run(
        every, "x", "--group-size", "8", "--without", "bias", "--without", "descent", "--no-smooth",
        "--activations", "int4", "--max-drop", "0", "--first-last-ternary", "--range", "percentile:99",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    config = ConversionConfig(**given)
    assert set(given) == {
        "group_size", "without", "smooth", "activations", "max_drop", "first_last_int8", "range"
    }  # fmt: skip
    assert config.without == (Step.BIAS, Step.DESCENT)
    assert (config.smooth, config.first_last_int8, config.max_drop) == (False, False, 0)
    assert config.activations is Activations.INT4
    assert config.percentile == 99


@pytest.mark.parametrize("name", ["omse", "omse-int4"])
def test_recipes_go_by_former_names_too(name):
    assert run(every, "x", "--recipe", name).exit_code == 0
    assert given == {"recipe": Recipe.OMSE}


def test_an_unknown_recipe_is_told_the_others():
    done = run(every, "x", "--recipe", "best")
    assert done.exit_code == 2
    assert "'best' is not one of 'fgq', 'calibrated', 'omse', 'reconstruct'." in " ".join(done.output.split())


def test_defaults_are_said():
    shown = " ".join(run(every, "--help").output.split())
    for words in (
        "[default: 64]",
        "[default: ternary; int4 with omse]",
        "[default: packed]",
        "[default: mse]",
    ):
        assert words in shown


def test_a_group_of_options_is_one_parameter():
    assert listed(grouped)[:4] == ["--before", "--first", "--second", "--after"]
    assert run(grouped, "x", "--second", "a", "--second", "b", "--after").exit_code == 0
    assert given == {"place": "x", "before": 0, "pair": Pair(second=["a", "b"]), "after": True}
