"""Which layer gets how many bits: sensitivities, and the best assignment under a budget.

The sensitivity of a layer to a scheme is the relative squared error of the network's outputs when that
layer's weights alone are quantized, ``sum (y' - y)^2 / sum y^2`` (the weights' own error is a poor guide to
it). The plan is the assignment of schemes with the least sum of sensitivities among all that fit the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.config import ConversionConfig
from fgq.converters.select import Choice
from fgq.data import Feed
from fgq.errors import ConfigError
from fgq.quantize import decibels, quantize_weight
from fgq.refine.pieces import Piece, Prefix, Replacement
from fgq.scheme import Codes, WeightScheme

CANDIDATES = (Codes.TERNARY, Codes.TIED, Codes.INT8)
"""The codes among which a plan chooses, cheapest first."""

_CODE_BITS = {Codes.TERNARY: 2, Codes.TIED: 4, Codes.INT4: 4, Codes.INT8: 8, Codes.DUAL: 8}

_SAMPLES = 64
"""Sensitivities are measured on the first batches of so many samples."""


def memory_bits(scheme: WeightScheme, length: int) -> float:
    """Return the bits of one weight as kernels hold it: its code, and its share of an 8-bit alpha.

    Parameters
    ----------
    scheme : WeightScheme
    length : int
        Positions on the group axis.
    """
    alpha = 0.0 if scheme.alpha_limit == 1 else 8 / scheme.group_length(length)
    return _CODE_BITS[scheme.codes] + alpha


def plan_schemes(
    model: ir.Model,
    choices: Sequence[Choice],
    feeds: Sequence[Feed],
    config: ConversionConfig,
    progress: Callable[[int, int], None],
) -> list[Choice]:
    """Give layers the schemes that serve the outputs best within `target_bits` for a weight on average.

    Layers that are kept at 8 bits anyway, and those in subgraphs, stay as they are, and count.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model.
    choices : sequence of Choice
        Its layers, with the schemes that the configuration alone gives them.
    feeds : sequence of feed
        Calibration data, of which a few batches are used.
    config : ConversionConfig
        With `target_bits`.
    progress : callable
        Called as ``progress(done, total)``.

    Raises
    ------
    ConfigError
        If even the cheapest schemes take more bits; it says how many.
    """
    assert config.target_bits is not None
    options = [_options(choice, config) for choice in choices]
    bits = [
        np.array([_bits(choice, scheme) for scheme in schemes])
        for choice, schemes in zip(choices, options, strict=True)
    ]
    weights = sum(choice.layer.weight_array.size for choice in choices)
    least = sum(float(each.min()) for each in bits) / weights
    if least > config.target_bits:
        raise ConfigError(
            f"target bits: found {config.target_bits:g}, wanted at least {least:.2f} for this model"
        )
    costs = _sensitivities(model, choices, options, _first(feeds), progress)
    picked = assign(bits, costs, config.target_bits * weights)
    return [
        choice if len(schemes) == 1 else replace(choice, weights=schemes[place], note=_note(choice, cost))
        for choice, schemes, place, cost in zip(choices, options, picked, costs, strict=True)
    ]


def assign(
    bits: Sequence[NDArray[np.float64]], costs: Sequence[NDArray[np.float64]], budget: float
) -> list[int]:
    """Choose one option for each layer: least sum of costs among all whose bits fit the budget.

    Exact: partial assignments are dropped only where another one takes no more bits and costs no more.

    Parameters
    ----------
    bits, costs : sequence of ndarray of float64
        For each layer, what each of its options takes and costs.
    budget : float
        At least the sum of the least bits.

    Returns
    -------
    list of int
        The option of each layer.
    """
    # What the layers still to come will take at least; no more than the rest may be spent so far.
    ahead = np.append(np.cumsum([each.min() for each in bits[::-1]])[::-1][1:], 0.0)
    spent, paid = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for layer_bits, layer_costs, rest in zip(bits, costs, ahead, strict=True):
        all_spent = (spent[:, None] + layer_bits).reshape(-1)
        all_paid = (paid[:, None] + layer_costs).reshape(-1)
        order = np.lexsort((all_paid, all_spent))
        order = order[all_spent[order] + rest <= budget * (1 + 1e-12)]
        before = np.minimum.accumulate(np.append(np.inf, all_paid[order][:-1]))
        kept = order[all_paid[order] < before]
        steps.append(np.divmod(kept, len(layer_bits)))
        spent, paid = all_spent[kept], all_paid[kept]
    state = int(np.argmin(paid))
    picked = []
    for parents, option in reversed(steps):
        picked.append(int(option[state]))
        state = int(parents[state])
    return picked[::-1]


def _options(choice: Choice, config: ConversionConfig) -> list[WeightScheme]:
    if choice.weights.codes is Codes.INT8 or choice.layer.in_subgraph:
        return [choice.weights]
    return [
        config.int8 if codes is Codes.INT8 else replace(choice.weights, codes=codes) for codes in CANDIDATES
    ]


def _bits(choice: Choice, scheme: WeightScheme) -> float:
    layer = choice.layer
    return layer.weight_array.size * memory_bits(scheme, layer.shape[layer.group_axis])


def _note(choice: Choice, costs: NDArray[np.float64]) -> str:
    """Say how far from the float one the output is with the cheapest scheme."""
    planned = f"{decibels(1.0, float(costs[0])):.0f} dB if {CANDIDATES[0]}"
    return f"{choice.note}; {planned}" if choice.note else planned


def _sensitivities(
    model: ir.Model,
    choices: Sequence[Choice],
    options: Sequence[Sequence[WeightScheme]],
    feeds: Sequence[Feed],
    progress: Callable[[int, int], None],
) -> list[NDArray[np.float64]]:
    nodes = list(model.graph)
    outputs = {str(value.name) for value in model.graph.outputs}
    prefix = Prefix(model, feeds, {})
    exact = [Piece(model, nodes, sorted(outputs))(values) for values in prefix.batches]
    found = []
    for done, (choice, schemes) in enumerate(zip(choices, options, strict=True)):
        progress(done, len(choices))
        costs = np.zeros(len(schemes))
        if len(schemes) > 1:
            layer = choice.layer
            prefix.advance(layer.node)
            rest = nodes[nodes.index(layer.node) :]
            made = sorted(outputs & {str(value.name) for node in rest for value in node.outputs})
            for place, scheme in enumerate(schemes):
                tensor = quantize_weight(
                    layer.weight_array, scheme, group_axis=layer.group_axis, channel_axis=layer.channel_axis
                )
                replaced = {layer.node: Replacement(layer.weight_index, tensor.dequantize())}
                run = Piece(model, rest, made, replaced)
                costs[place] = relative_error(exact, [run(values) for values in prefix.batches])
        found.append(costs)
    return found


def _first(feeds: Sequence[Feed]) -> list[Feed]:
    """Return the first batches, up to _SAMPLES samples."""
    lengths = [next((len(array) for array in feed.values() if array.ndim), 1) for feed in feeds]
    return list(feeds[: 1 + int(np.searchsorted(np.cumsum(lengths), _SAMPLES))])


def relative_error(
    exact: Sequence[Mapping[str, NDArray[np.floating]]], found: Sequence[Mapping[str, NDArray[np.floating]]]
) -> float:
    """Return the relative squared error of all float outputs, each output weighing the same."""
    total = 0.0
    for name, first in found[0].items():
        if first.dtype.kind == "f":
            power = sum(float(np.sum(np.square(values[name], dtype=np.float64))) for values in exact)
            noise = sum(
                float(np.sum(np.square(theirs[name] - mine[name], dtype=np.float64)))
                for theirs, mine in zip(found, exact, strict=True)
            )
            total += noise / power if power else 0.0
    return total
