"""Among which schemes a plan chooses for a layer, and what each takes: bits and multiplications."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fgq.config import ConversionConfig
from fgq.converters.select import Choice
from fgq.converters.survey import describe
from fgq.errors import ConfigError
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.report import removed_by

Option = WeightScheme | None
"""The scheme of a layer's weights; None where the layer stays float."""

CANDIDATES = tuple(sorted((codes for codes in Codes if codes.spec.planned), key=lambda codes: codes.largest))
"""The codes among which a plan chooses, cheapest first; after them comes float."""

_FLOAT_BITS = 32


def options_of(choice: Choice, config: ConversionConfig) -> list[Option]:
    """Return what a layer may become: of a layer kept at 8 bits that or float, in a subgraph what it is."""
    if choice.layer.in_subgraph:
        return [choice.weights]
    if not choice.weights.codes.spec.grouped:
        return [choice.weights, None]
    ladder: list[Option] = [
        replace(choice.weights, codes=codes) if codes.spec.grouped else config.int8 for codes in CANDIDATES
    ]
    return [*ladder, None]


def memory_bits(option: Option, length: int) -> float:
    """Return the bits of one weight as kernels hold it: its code, and its share of an 8-bit alpha.

    Parameters
    ----------
    option : WeightScheme or None
    length : int
        Positions on the group axis.
    """
    if option is None:
        return _FLOAT_BITS
    spec = option.codes.spec
    return spec.memory_bits + (8 / option.group_length(length) if spec.grouped else 0.0)


def bits_of(choice: Choice, options: list[Option]) -> NDArray[np.float64]:
    """Return the bits of a layer's weights under each option."""
    layer = choice.layer
    length = layer.shape[layer.group_axis]
    return np.array([layer.weight_array.size * memory_bits(option, length) for option in options])


def multiplications_of(
    choice: Choice, options: list[Option], config: ConversionConfig
) -> NDArray[np.float64]:
    """Return the multiplications of one sample that each option leaves to a layer.

    Raises
    ------
    ConfigError
        If the model does not say what shape the layer's result has.
    """
    layer = choice.layer
    every = describe(choice, None, config.form).multiplications
    if every is None:
        raise ConfigError(
            f"target multiplications: found no shape of what {layer.name} gives, wanted one to count by; "
            "give another target"
        )
    length = layer.shape[layer.group_axis]
    left = [1.0 if option is None else 1 - removed_by(option, length) for option in options]
    return every * np.array(left)
