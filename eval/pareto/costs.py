"""What one inference of a network costs: the Pareto study's formulas, and this project's own counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fgq.quantization.scheme import Codes
from fgq.report import LayerReport

_FLOAT_BITS = 32

_WIDTHS = (4, 8, 16, 32)
"""Widths of the multipliers of the linear cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Sums over the layers with weights, of one image.

    With n the multiplications of a layer, w and a the bits of its weights and of what it reads (Abdolrashidi
    et al. 2021, arXiv 2105.03536, section 3, "Cost model", and its ``compute_cost_utils``)::

        quadratic   sum n w a
        linear      sum n max(w, a), rounded up to a width that hardware has: 4, 8, 16 or 32

    Ternary codes have 2 bits, tied planes 4, float 32; the paper's float networks have 16, for which both
    columns would be a quarter and a half.

    Parameters
    ----------
    quadratic, linear : float
    memory : float
        Bits of all weights as the file stores them, scales counted; at most 1.6 + 8 / N for a ternary weight
        and its row's 32.
    multiplications : float
        Those that are left: one for each group in ternary and tied layers.
    additions : float
        One for each product, of each plane, whether its code is zero or not; and in ternary and tied layers
        one more for each group, which joins its sum to the others.
    """

    quadratic: float
    linear: float
    memory: float
    multiplications: float
    additions: float


def costs_of(layers: Iterable[LayerReport], *, converted: bool) -> Costs:
    """Add up the costs of layers.

    Parameters
    ----------
    layers : iterable of LayerReport
        As `fgq.converters.survey.inspect` reports them; their multiplications are known.
    converted : bool
        False for the layers of a float model, of which `inspect` says what a conversion would make.
    """
    quadratic = linear = memory = multiplications = additions = 0.0
    for layer in layers:
        products = layer.multiplications or 0
        codes = Codes(layer.scheme.split()[0]) if converted and layer.is_converted else None
        w = _FLOAT_BITS if codes is None else codes.spec.memory_bits
        a = _FLOAT_BITS if codes is None else layer.activation_bits or _FLOAT_BITS
        left = products * (1 - layer.multiplications_removed)
        quadratic += products * w * a
        linear += products * next(width for width in _WIDTHS if width >= max(w, a))
        memory += layer.weights * (_FLOAT_BITS if codes is None else layer.bits_per_weight)
        multiplications += left
        planes = 0 if codes is None else codes.spec.planes
        additions += products * max(planes, 1) + (left if planes else 0)
    return Costs(
        quadratic=quadratic,
        linear=linear,
        memory=memory,
        multiplications=multiplications,
        additions=additions,
    )
