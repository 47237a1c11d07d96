"""Plans as data: which scheme each layer gets, written as JSON that people can read, change and give back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fgq.errors import ConfigError
from fgq.quantization.scheme import LARGEST_GROUP, Codes, WeightScheme
from fgq.support.schema import check, names, number, one_of, optional, read_json, shown, table, text, whole

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
    return plan_of(read_json(path, ConfigError), str(path))


def plan_of(value: object, where: str = "plan") -> Plan:
    """Check plain values and turn them into a plan.

    Budgets and sensitivities say where the layers' schemes came from, and may be missing.

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
    entries = check(_PLAN, value, where, ConfigError)
    layers = {
        name: _layer(entry, f"{where}: layers: {shown(name)}") for name, entry in entries["layers"].items()
    }
    return Plan(
        layers=layers,
        measure=entries.get("measure", ""),
        budgets=entries.get("budgets", {}),
        takes=entries.get("takes", {}),
    )


_AMOUNTS = table({}, dict.fromkeys(("bits", "multiplications", "latency"), number(least=0)))

_LAYER = table(
    {"codes": one_of(*Codes, FLOAT)},
    {"group_size": optional(whole(1, LARGEST_GROUP)), "sensitivities": names(number())},
)

_PLAN = table(
    {"format": one_of(FORMAT), "layers": names(_LAYER)},
    {"measure": text, "budgets": _AMOUNTS, "takes": _AMOUNTS},
)


def _fields(scheme: WeightScheme | None) -> dict[str, Any]:
    if scheme is None:
        return {"codes": FLOAT}
    size = {} if scheme.group_size is None else {"group_size": scheme.group_size}
    return {"codes": scheme.codes.value} | size


def _layer(entry: Mapping[str, Any], where: str) -> PlannedLayer:
    codes, size = entry["codes"], entry.get("group_size")
    grouped = codes != FLOAT and Codes(codes).spec.grouped
    if grouped != (size is not None):
        wanted = "a whole number of at least 1" if grouped else "none"
        raise ConfigError(f"{where}: found the group size {size}, wanted {wanted} for {codes}")
    scheme = None if codes == FLOAT else WeightScheme(codes=Codes(codes), group_size=size)
    return PlannedLayer(scheme=scheme, sensitivities=entry.get("sensitivities", {}))
