"""Ternary and uniform fits (`fgq.quantization`) in PyTorch, on the weights' device, all groups at once.

Symbols as in `fgq.quantization.tensor`: M rows, G groups of N. The steps, their order and their tie rules are
those of the NumPy modules, in float64 as there. Only sums over a row may be added in another order; a float32
scale hides that, unless the sum lies within its last bits of a boundary between two float32 values.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fgq.errors import ConfigError
from fgq.quantization import levels, ternary
from fgq.quantization.scheme import Fit, Granularity, WeightScheme

_TINY = torch.finfo(torch.float32).tiny


def check_trained(scheme: WeightScheme) -> None:
    """Refuse the schemes that are not trained.

    Raises
    ------
    ConfigError
        If the scheme is neither ternary, tied or INT4 in groups nor INT8 per channel.
    """
    usual = Granularity.GROUP if scheme.codes.spec.grouped else Granularity.FILTER
    if not scheme.codes.spec.trainable or scheme.granularity is not usual:
        raise ConfigError(f"scheme: found {scheme}, wanted groups of ternary, tied or int4, or int8 to train")


@torch.no_grad()
def dequantized(weight: Tensor, scheme: WeightScheme, *, group_axis: int, channel_axis: int) -> Tensor:
    """Return the values that `fgq.quantization.weights.quantize_weight` and `dequantize` give for a weight.

    Parameters
    ----------
    weight : torch.Tensor
        Finite weights of at least two axes, of any float type; computed in float64.
    scheme : WeightScheme
    group_axis, channel_axis : int
        As for `fgq.quantization.weights.quantize_weight`.

    Returns
    -------
    torch.Tensor
        float32, in the shape and on the device of `weight`.

    Raises
    ------
    ConfigError
        If the scheme is one that is not trained.
    """
    check_trained(scheme)
    integers, _, scale, moved = _fit_weight(weight, scheme, group_axis, channel_axis)
    values = integers.float() * scale.float()[:, None, None]
    return values.reshape(moved).movedim((0, -1), (channel_axis, group_axis))


@torch.no_grad()
def fitted_steps(weight: Tensor, scheme: WeightScheme, *, group_axis: int, channel_axis: int) -> Tensor:
    """Return the step between neighbouring values of each weight, ``alpha * row_scale`` of its group.

    Parameters
    ----------
    weight, scheme, group_axis, channel_axis
        As for `dequantized`.

    Returns
    -------
    torch.Tensor
        float32, in the shape and on the device of `weight`; 0 where the group's alpha is 0.
    """
    _, alpha, scale, moved = _fit_weight(weight, scheme, group_axis, channel_axis)
    steps = (alpha.double() * scale[:, None, None]).float().expand(moved[0], -1, moved[-1])
    return steps.reshape(moved).movedim((0, -1), (channel_axis, group_axis))


def _fit_weight(
    weight: Tensor, scheme: WeightScheme, group_axis: int, channel_axis: int
) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
    """Return w8 and alpha, both (M, E, L), the row scales (M,) and the shape with the axes moved."""
    rows = weight.to(torch.float32).movedim((channel_axis, group_axis), (0, -1))
    moved = rows.shape
    matrix = rows.reshape(moved[0], -1, moved[-1])
    if scheme.codes.spec.fit is Fit.LARGEST:
        matrix = matrix.double()
        scale = _bounded(matrix.abs().amax(dim=(1, 2)) / scheme.max_code)
        divisor = torch.where(scale > 0, scale, 1.0)[:, None, None]
        w8 = (matrix / divisor).round().clamp(-scheme.max_code, scheme.max_code)
        return w8, torch.ones_like(matrix[:1, :1, :1]).expand_as(matrix), scale, moved
    length = moved[-1]
    N = scheme.group_length(length)
    G = -(-length // N)
    groups = functional.pad(matrix, (0, G * N - length)).reshape(moved[0], -1, N)
    codes, alpha, scale = _fit(groups, scheme)
    spread = alpha[..., None].expand_as(codes)
    w8, alpha = ((part.reshape(moved[0], -1, G * N)[..., :length]) for part in (codes * spread, spread))
    return w8, alpha, scale, moved


def _fit(groups: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor, Tensor]:
    if scheme.codes.spec.fit is Fit.TERNARY:
        return _fit_ternary(groups, scheme.alpha_limit)
    return _fit_levels(groups.double(), scheme.max_code, scheme.alpha_limit)


def _bounded(scale: Tensor) -> Tensor:
    """See `fgq.quantization.ternary.bounded_row_scale`, without further bounds."""
    return torch.where(scale > 0, scale.clamp_min(_TINY).float().double(), 0.0)


def _divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator > 0, numerator / torch.where(denominator > 0, denominator, 1.0), 0.0)


def _fit_ternary(groups: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `ternary.fit_rows`; groups (M, G, N) to codes (M, G, N), alpha (M, G) and row scale (M,).

    Groups and codes are float32, which sorts and compares them exactly and faster.
    """
    magnitude = groups.abs()
    ordered = magnitude.contiguous().sort(dim=-1).values.double()
    prefix = functional.pad(ordered.flip(-1).cumsum(-1), (1, 0))
    real = _best_scale(prefix)
    row_scale = _bounded(real.amax(-1) / limit)
    best_error, best_row_scale = torch.full_like(row_scale, torch.inf), row_scale
    for _ in range(ternary.ROUNDS):
        alpha, count, covered, error = _choose_ternary(ordered, prefix, real, row_scale, limit)
        total = error.sum(-1)
        best_row_scale = torch.where(total < best_error, row_scale, best_row_scale)
        best_error = torch.minimum(total, best_error)
        row_scale = _bounded(_divided((alpha * covered).sum(-1), (alpha**2 * count).sum(-1)))
    alpha = _choose_ternary(ordered, prefix, real, best_row_scale, limit)[0]
    level = alpha * best_row_scale[:, None]
    threshold = _rounded_up(torch.where(level > 0, level / 2, torch.inf))
    codes = groups.sign() * (magnitude >= threshold[..., None])
    return codes, alpha.float(), best_row_scale


def _rounded_up(values: Tensor) -> Tensor:
    """Return the least float32 values that are not below float64 ones."""
    rounded = values.float()
    return torch.where(rounded < values, rounded.nextafter(torch.full_like(rounded, torch.inf)), rounded)


def _best_scale(prefix: Tensor) -> Tensor:
    """See `fgq.quantization.ternary.best_scale`; of equal prefixes the shortest."""
    count = torch.arange(1, prefix.shape[-1], device=prefix.device)
    gain = prefix[..., 1:] / count.double().sqrt()
    best = torch.where(gain == gain.amax(-1, keepdim=True), count, count[-1]).amin(-1)
    return prefix.gather(-1, best[..., None])[..., 0] / best


def _choose_ternary(
    ordered: Tensor, prefix: Tensor, real: Tensor, row_scale: Tensor, limit: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return alpha, the number of nonzero codes, their magnitudes' sum and the error of each group."""
    lower = _divided(real, row_scale[:, None].expand_as(real)).floor()
    candidates = []
    for alpha in (lower.clamp_max(limit), (lower + 1).clamp_max(limit)):
        level = alpha * row_scale[:, None]
        count = ordered.shape[-1] - torch.searchsorted(ordered, level[..., None] / 2)[..., 0]
        count = count * (level > 0)
        covered = prefix.gather(-1, count[..., None])[..., 0]
        candidates.append((alpha, count, covered, count * level**2 - 2 * level * covered))
    raised = candidates[1][3] < candidates[0][3]
    alpha, count, covered, error = (
        torch.where(raised, high, low) for low, high in zip(*candidates, strict=True)
    )
    empty = count == 0
    return torch.where(empty, 0.0, alpha), count, covered, error * ~empty


def _fit_levels(groups: Tensor, max_code: int, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """See `levels.fit_rows`; groups (M, G, N) to codes (M, G, N), alpha (M, G) and row scale (M,)."""
    real = _real_scale(groups, max_code)
    widest = real.amax(-1) / limit
    best_row_scale = widest
    best_error = torch.full_like(widest, torch.inf)
    for start in levels.STARTS:
        row_scale = _bounded(start * widest)
        for _ in range(levels.ROUNDS):
            codes, alpha, total = _choose_levels(groups, real, row_scale, max_code, limit)
            best_row_scale = torch.where(total < best_error, row_scale, best_row_scale)
            best_error = torch.minimum(total, best_error)
            exact = codes * alpha[..., None]
            row_scale = _bounded(_divided((exact * groups).sum((1, 2)), (exact**2).sum((1, 2))))
    codes, alpha, _ = _choose_levels(groups, real, best_row_scale, max_code, limit)
    return codes, alpha, best_row_scale


def _nearest_codes(groups: Tensor, scale: Tensor, max_code: int) -> Tensor:
    inverse = torch.where(scale > 0, 1.0 / torch.where(scale > 0, scale, 1.0), 0.0)
    return (groups * inverse[..., None]).round().clamp(-max_code, max_code)


def _refitted(groups: Tensor, scale: Tensor, max_code: int) -> tuple[Tensor, Tensor]:
    codes = _nearest_codes(groups, scale, max_code)
    covered = (codes * groups).sum(-1)
    fitted = _divided(covered, (codes * codes).sum(-1))
    return fitted, -covered * fitted


def _real_scale(groups: Tensor, max_code: int) -> Tensor:
    """See `fgq.quantization.levels.best_scale`."""
    widest = groups.abs().amax(-1) / max_code
    best, best_error = widest, torch.full_like(widest, torch.inf)
    for clipping in levels.CLIPPING.tolist():
        scale, error = _refitted(groups, clipping * widest, max_code)
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    for _ in range(levels.ROUNDS):
        best = _refitted(groups, best, max_code)[0]
    return best


def _choose_levels(
    groups: Tensor, real: Tensor, row_scale: Tensor, max_code: int, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes and alpha of each group, and the error of each row."""
    lower = _divided(real, row_scale[:, None].expand_as(real)).floor()
    candidates = []
    for alpha in (lower.clamp_max(limit), (lower + 1).clamp_max(limit)):
        level = alpha * row_scale[:, None]
        codes = _nearest_codes(groups, level, max_code)
        square, covered = (codes * codes).sum(-1), (codes * groups).sum(-1)
        candidates.append((codes, alpha * (square > 0), level * (level * square - 2 * covered)))
    (low, low_alpha, low_error), (high, high_alpha, high_error) = candidates
    raised = high_error < low_error
    return (
        torch.where(raised[..., None], high, low),
        torch.where(raised, high_alpha, low_alpha),
        torch.where(raised, high_error, low_error).sum(-1),
    )
