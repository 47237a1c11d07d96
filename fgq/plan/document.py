"""Plans as data: which scheme each layer gets, written as JSON that people can read, change and give back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgq.errors import ConfigError
from fgq.scheme import Codes, WeightScheme

FORMAT = "fgq plan 1"
"""What a plan file says it is."""

FLOAT = "float"
"""What a plan calls the codes of a layer that is not converted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLayer:
    """What a plan says of one layer.

    Parameters
    ----------
    scheme : WeightScheme or None
        None for a layer that stays float.
    sensitivities : mapping of str to float
        How far the output moves when this layer alone gets a scheme, by the scheme's name.
    """

    scheme: WeightScheme | None
    sensitivities: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The scheme of every layer of a network.

    Parameters
    ----------
    layers : mapping of str to PlannedLayer
        By the layer's name, in graph order: every layer of the main graph that can be converted.
    measure : str
        What the sensitivities are; empty where the plan has none.
    budgets : mapping of str to float
        What was asked for.
    takes : mapping of str to float
        What the plan takes, by the same names.
    """

    layers: Mapping[str, PlannedLayer]
    measure: str = ""
    budgets: Mapping[str, float] = field(default_factory=dict)
    takes: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold, as `plan_of` reads them."""
        return {
            "format": FORMAT,
            "budgets": dict(self.budgets),
            "takes": dict(self.takes),
            "measure": self.measure,
            "layers": {
                name: _fields(layer.scheme)
                | ({"sensitivities": dict(layer.sensitivities)} if layer.sensitivities else {})
                for name, layer in self.layers.items()
            },
        }


def scheme_name(scheme: WeightScheme | None) -> str:
    """Return what reports call a scheme, ``float`` for none."""
    return FLOAT if scheme is None else str(scheme)


def read_plan(path: str | os.PathLike[str]) -> Plan:
    """Read a plan from a JSON file.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    ConfigError
        If the file cannot be read or is not a plan, naming the entry.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # of the decoder and of the parser
        raise ConfigError(f"{path}: is not valid JSON ({error})") from None
    return plan_of(value, str(path))


def plan_of(value: object, where: str = "plan") -> Plan:
    """Check plain values and turn them into a plan.

    Only the layers' schemes are looked at; budgets and sensitivities say where they came from, and may be
    missing.

    Parameters
    ----------
    value : object
        What `Plan.to_dict` returned, or a person wrote.
    where : str
        What errors call it.

    Raises
    ------
    ConfigError
        Naming the entry, what was found and what was wanted.
    """
    entries = _object(value, where)
    if entries.get("format") != FORMAT:
        raise ConfigError(f"{where}: found the format {entries.get('format')!r}, wanted {FORMAT!r}")
    layers = {
        name: _layer(entry, f"{where}: layer {name!r}")
        for name, entry in _object(entries.get("layers"), f"{where}: layers").items()
    }
    return Plan(
        layers=layers,
        measure=str(entries.get("measure", "")),
        budgets=_numbers(entries.get("budgets", {}), f"{where}: budgets"),
        takes=_numbers(entries.get("takes", {}), f"{where}: takes"),
    )


def _fields(scheme: WeightScheme | None) -> dict[str, Any]:
    if scheme is None:
        return {"codes": FLOAT}
    size = {} if scheme.group_size is None else {"group_size": scheme.group_size}
    return {"codes": scheme.codes.value} | size


def _layer(value: object, where: str) -> PlannedLayer:
    entry = _object(value, where)
    unknown = sorted(set(entry) - {"codes", "group_size", "sensitivities"})
    if unknown:
        raise ConfigError(f"{where}: found {unknown[0]!r}, wanted codes, group_size and sensitivities alone")
    codes, size = entry.get("codes"), entry.get("group_size")
    if codes not in (*Codes, FLOAT):
        raise ConfigError(f"{where}: found the codes {codes!r}, wanted one of {', '.join((*Codes, FLOAT))}")
    grouped = codes not in (Codes.INT8, FLOAT)
    if grouped and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ConfigError(f"{where}: found the group size {size!r}, wanted a whole number of at least 1")
    if not grouped and size is not None:
        raise ConfigError(f"{where}: found the group size {size!r}, wanted none for {codes}")
    scheme = None if codes == FLOAT else WeightScheme(codes=Codes(str(codes)), group_size=size)
    sensitivities = _numbers(entry.get("sensitivities", {}), f"{where}: sensitivities")
    return PlannedLayer(scheme=scheme, sensitivities=sensitivities)


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise ConfigError(f"{where}: found {found}, wanted an object with names")
    return value


def _numbers(value: object, where: str) -> dict[str, float]:
    numbers = _object(value, where)
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ConfigError(f"{where}: {name!r}: found {number!r}, wanted a number")
    return numbers
