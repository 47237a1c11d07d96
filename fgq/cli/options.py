"""Arguments that several commands take; those of a conversion are made from its configuration."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from fgq.config import ConversionConfig, Recipe
from fgq.config.option import Option, options

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX model.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON alone.")]


class Engine(StrEnum):
    """What runs a model."""

    FGQ = "fgq"
    ONNXRUNTIME = "onnxruntime"
    BOTH = "both"


def recipe_option(text: str) -> Any:
    """Return an option whose values are recipes, by the names of today and of earlier versions."""
    return typer.Option(parser=_recipe, metavar=f"<{'|'.join(Recipe)}>", help=text)


def _recipe(name: str) -> Recipe:
    try:
        return Recipe(name)
    except ValueError:
        known = ", ".join(map(repr, map(str, Recipe)))
        raise typer.BadParameter(f"{name!r} is not one of {known}.") from None


def takes_conversion_options(
    *names: str, before: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command options of a conversion.

    The command receives those that are given on the command line as keyword arguments, by the names of the
    fields of `ConversionConfig`.

    Parameters
    ----------
    *names : str
        The fields; all if none is named. They follow the command's positional parameters.
    before : mapping of str to sequence of str
        Of a field, the command's own keyword parameters that stand before it; all others stand at the end.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        added = {each.name: each for each in _parameters(names)}

        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = {name: values.pop(name) for name in added}
            command(**values, **{name: value for name, value in given.items() if value not in (None, [])})

        keywords = {name: each for name, each in own.items() if each.kind is each.KEYWORD_ONLY}
        merged = [
            each.replace(kind=each.KEYWORD_ONLY)
            for each in own.values()
            if each.kind is each.POSITIONAL_OR_KEYWORD
        ]
        for name, each in added.items():
            merged += [keywords.pop(earlier) for earlier in before.get(name, ())]
            merged.append(each)
        merged += keywords.values()
        _set_parameters(run, merged)
        return run

    return decorate


def expands_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of its dataclass parameters as options, in their place.

    The command still receives the dataclasses: several options that belong together are one parameter.
    """
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: each.annotation for name, each in own.items() if is_dataclass(each.annotation)
    }
    members = {name: get_type_hints(group, include_extras=True) for name, group in groups.items()}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{member: values.pop(member) for member in members[name]})
        command(**values)

    merged = []
    for name, each in own.items():
        if name not in groups:
            merged.append(each.replace(kind=each.KEYWORD_ONLY))
            continue
        for field in fields(groups[name]):
            annotation = members[name][field.name]
            merged.append(
                inspect.Parameter(field.name, each.KEYWORD_ONLY, default=field.default, annotation=annotation)
            )
    _set_parameters(run, merged)
    return run


def _set_parameters(run: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> None:
    """Let Typer see these parameters in place of a function's own."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}


def _parameters(names: Sequence[str]) -> Iterator[inspect.Parameter]:
    """Yield a parameter for each field of the configuration that is named; none is given by default."""
    hints, described = get_type_hints(ConversionConfig), options(ConversionConfig)
    for each in fields(ConversionConfig):
        if not names or each.name in names:
            annotation = _annotation(hints[each.name], described[each.name], each.default)
            yield inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )


def _annotation(kind: Any, option: Option, default: Any) -> Any:
    """Return the annotation that Typer makes an option of."""
    kinds = [each for each in get_args(kind) if each not in (type(None), ...)]
    if get_origin(kind) is tuple:
        kind = list[kinds[0]]  # type: ignore[valid-type]
    elif kinds:
        (kind,) = kinds
    in_words = option.in_words
    if not in_words and not isinstance(default, bool | tuple) and default is not None:
        in_words = str(default)
    text = f"{option.text}  [default: {in_words}]" if in_words else option.text
    if kind is Recipe:
        return Annotated[Recipe | None, recipe_option(text)]
    flags = (option.flags,) if option.flags else ()
    return Annotated[kind | None, typer.Option(*flags, metavar=option.metavar, help=text)]
