"""What the schemes of every layer take and cost, and the plans that are best under budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from fgq.config import ConversionConfig
from fgq.converters.float_layers import FloatNode
from fgq.converters.select import Choice
from fgq.data.feed import Feed
from fgq.errors import ConfigError
from fgq.plan.assignment import Table, assign, check_reach, totals
from fgq.plan.latency import seconds_of
from fgq.plan.options import Option, bits_of, multiplications_of, options_of
from fgq.plan.plan_file import Plan, PlannedLayer, scheme_name
from fgq.plan.sensitivity import DIVERGENCE, RELATIVE_ERROR, sensitivities

BITS, MULTIPLICATIONS, LATENCY = "bits", "multiplications", "latency"
"""Budgets: bits a weight in memory, the share of multiplications left, the share of float's time."""

_STEP = 1.08
"""A curve of plans has budgets that grow by this factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoffs:
    """What each option of each layer takes and costs.

    Parameters
    ----------
    names : sequence of str or None
        The layers; None for one in a subgraph, which has one option and no place in a plan.
    options : sequence of sequence of Option
        For each layer.
    costs : table
        Sensitivities.
    takes : mapping of str to table
        By the name of the budget.
    units : mapping of str to float
        What one of each budget is worth in the table's own unit.
    measure : str
        What the sensitivities are.
    """

    names: Sequence[str | None]
    options: Sequence[Sequence[Option]]
    costs: Table
    takes: Mapping[str, Table]
    units: Mapping[str, float]
    measure: str

    def plan(self, budgets: Mapping[str, float]) -> Plan:
        """Return the plan of least cost that keeps all budgets.

        Parameters
        ----------
        budgets : mapping of str to float
            Of the names of `takes`.

        Raises
        ------
        ConfigError
            If there is none; it says what is possible.
        """
        picked = self._assign(budgets)
        if picked is None:
            for name, budget in budgets.items():
                check_reach(f"target {name}", self.takes[name], budget, self.units[name])
            wanted = " and ".join(f"target {name} {budget:g}" for name, budget in budgets.items())
            raise ConfigError(f"{wanted}: found no plan that keeps all of them, wanted looser ones")
        return self._as_plan(picked, budgets)

    def curve(self, budgets: Mapping[str, float]) -> list[Plan]:
        """Return plans from the fewest bits up, each the best for its bits, up to all that budgets allow.

        The plan that leaves every layer float is none of them.

        Parameters
        ----------
        budgets : mapping of str to float
            Kept by all plans.
        """
        found: list[tuple[list[int], Plan]] = []
        for bits in self._bits_from_least(budgets.get(BITS, np.inf)):
            picked = self._assign({**budgets, BITS: bits})
            if picked is None or (found and picked == found[-1][0]):
                continue
            if any(scheme[place] is not None for scheme, place in zip(self.options, picked, strict=True)):
                found.append((picked, self._as_plan(picked, budgets)))
        return [plan for _, plan in found]

    def _bits_from_least(self, most: float) -> Iterator[float]:
        table, unit = self.takes[BITS], self.units[BITS]
        bits = sum(float(each.min()) for each in table) / unit
        highest = min(most, sum(float(each.max()) for each in table) / unit)
        while bits < highest:
            yield bits
            bits *= _STEP
        yield highest

    def _assign(self, budgets: Mapping[str, float]) -> list[int] | None:
        return assign(
            self.costs, [(self.takes[name], budget * self.units[name]) for name, budget in budgets.items()]
        )

    def _as_plan(self, picked: Sequence[int], budgets: Mapping[str, float]) -> Plan:
        layers = {
            name: PlannedLayer(
                scheme=schemes[place],
                sensitivities={
                    scheme_name(one): float(cost) for one, cost in zip(schemes, costs, strict=True)
                },
            )
            for name, schemes, costs, place in zip(self.names, self.options, self.costs, picked, strict=True)
            if name is not None
        }
        takes = {name: totals(table, picked) / self.units[name] for name, table in self.takes.items()}
        return Plan(layers=layers, measure=self.measure, budgets=dict(budgets), takes=takes)


def weigh(
    model: ir.Model,
    choices: Sequence[Choice],
    feeds: Sequence[Feed],
    sample: Feed,
    config: ConversionConfig,
    scores: str | None,
    progress: Callable[[int, int], None],
) -> Tradeoffs:
    """Measure what the schemes of every layer take of the configuration's budgets, and what they cost.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model.
    choices : sequence of Choice
        Its layers, with the schemes that the configuration alone gives them.
    feeds : sequence of feed
        Calibration data, of which a few batches are used.
    sample : feed
        A single sample where the model takes one, for estimates of latency.
    config : ConversionConfig
    scores : str or None
        The output that scores classes, if there is one.
    progress : callable
        Called as ``progress(done, total)``.

    Raises
    ------
    ConfigError
        If a budget cannot be counted.
    """
    options = [options_of(choice, config) for choice in choices]
    pairs = list(zip(choices, options, strict=True))
    takes: dict[str, Table] = {BITS: [bits_of(*pair) for pair in pairs]}
    units = {BITS: float(sum(choice.layer.weight_array.size for choice in choices))}
    if MULTIPLICATIONS in config.budgets:
        takes[MULTIPLICATIONS] = [multiplications_of(*pair, config) for pair in pairs]
    costs = sensitivities(model, choices, options, feeds, scores, progress)
    if LATENCY in config.budgets:
        takes[LATENCY] = seconds_of(model, choices, options, sample)
    for name in takes.keys() - units.keys():
        units[name] = sum(float(each[-1]) for each in takes[name])  # the last option is float
    return Tradeoffs(
        names=[None if choice.layer.in_subgraph else choice.layer.name for choice in choices],
        options=options,
        costs=costs,
        takes=takes,
        units=units,
        measure=RELATIVE_ERROR if scores is None else DIVERGENCE,
    )


def apply_plan(
    chosen: Sequence[Choice | FloatNode], plan: Plan, config: ConversionConfig
) -> list[Choice | FloatNode]:
    """Give layers the schemes of a plan; those in subgraphs keep their own.

    Parameters
    ----------
    chosen : sequence of Choice or FloatNode
        What the configuration alone makes of the layers.
    plan : Plan
    config : ConversionConfig

    Raises
    ------
    ConfigError
        If the plan lacks a layer, has one that is unknown or cannot be converted, or a scheme that does not
        fit, or leaves all float.
    """
    choices: dict[str, Choice | FloatNode] = {
        entry.name: entry for entry in chosen if isinstance(entry, FloatNode)
    }
    choices |= {
        entry.layer.name: entry
        for entry in chosen
        if isinstance(entry, Choice) and not entry.layer.in_subgraph
    }
    for name in plan.layers:
        entry = choices.get(name)
        if entry is None:
            raise ConfigError(
                f"plan: found the layer {name!r}, which the model lacks, wanted its layers alone"
            )
        scheme = plan.layers[name].scheme
        if isinstance(entry, FloatNode) and scheme is not None:
            raise ConfigError(f"plan: found {scheme} for {name!r}, wanted float: {entry.reason}")
    missing = [
        name for name, entry in choices.items() if isinstance(entry, Choice) and name not in plan.layers
    ]
    if missing:
        some = ", ".join(map(repr, missing[:3])) + (", .." if len(missing) > 3 else "")
        raise ConfigError(
            f"plan: found no entry for {some}, wanted one for every layer; float leaves it as it is"
        )
    planned = [_planned(entry, plan, config) for entry in chosen]
    if not any(isinstance(entry, Choice) for entry in planned):
        raise ConfigError("plan: found every layer float, wanted at least one to convert")
    return planned


def _planned(entry: Choice | FloatNode, plan: Plan, config: ConversionConfig) -> Choice | FloatNode:
    if isinstance(entry, FloatNode) or entry.layer.in_subgraph:
        return entry
    layer = plan.layers[entry.layer.name]
    if layer.scheme is None:
        return FloatNode(entry.layer.node, "planned", entry.layer)
    cheapest = next(iter(layer.sensitivities.items()), None)
    planned = "planned" if cheapest is None else f"planned: {cheapest[1]:.2g} if {cheapest[0]}"
    note = f"{entry.note}; {planned}" if entry.note else planned
    return replace(entry, weights=replace(layer.scheme, weight_limit=config.weight_limit), note=note)
