"""From the float weights of one layer to a `QuantizedTensor`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fgq.errors import WeightError
from fgq.quantization import levels, ternary
from fgq.quantization.scheme import INT8_LIMIT, Fit, Granularity, WeightScheme
from fgq.quantization.tensor import Plane, QuantizedTensor
from fgq.quantization.ternary import bounded_row_scale

BIAS_LIMIT = 2.0**30
"""A bias quantized to int32 stays below this, which leaves the sum of products room in an int32."""

_CHUNK = 1 << 21
"""Weights worked on at once; bounds the memory of the float64 temporaries to some 200 MB."""


_NO_BIAS = 1e-30
"""Row scales that are of no use to a bias, as it is zero."""


def quantize_weight(
    weight: NDArray[np.floating],
    scheme: WeightScheme,
    *,
    group_axis: int,
    channel_axis: int,
    least_row_scale: NDArray[np.float64] | None = None,
    per_channel: bool = True,
) -> QuantizedTensor:
    """Quantize the weights of one layer.

    Parameters
    ----------
    weight : ndarray of float
        Finite weights of at least two axes, in the layer's own layout.
    scheme : WeightScheme
        What the codes are.
    group_axis, channel_axis : int
        The reduction axis along which groups run, and the axis of output channels. Groups restart at
        every position of the other axes (the kernel positions of a convolution).
    least_row_scale : ndarray of float64, shape (M,), optional
        Lower bounds on the row scales, see `least_row_scale`.
    per_channel : bool
        Whether every output channel may have a row scale of its own; otherwise all share one, as they do
        with the granularity ``layer``.

    Returns
    -------
    QuantizedTensor
        A row of zeros takes the median of the other row scales (1 if there is none), or a finer one that
        leaves its bias 24 bits.

    Raises
    ------
    WeightError
        If a weight is NaN or infinite, or the tensor is empty.
    """
    if weight.size == 0:
        raise WeightError(f"weights: found an empty tensor {list(weight.shape)}")
    check_finite("weights", weight)
    matrix = as_rows(weight, group_axis, channel_axis)
    least = least_row_scale
    per_channel = per_channel and scheme.granularity is not Granularity.LAYER
    if not per_channel:
        matrix = matrix.reshape(1, -1, matrix.shape[-1])
        least = None if least is None else least.max(keepdims=True)
    if scheme.codes.spec.fit is Fit.LARGEST:
        codes, row_scale = int8_rows(matrix, scheme, least)
        alpha = np.ones((1, 1, 1), np.uint8)
    else:
        codes, alpha, row_scale = _grouped_rows(matrix, scheme, least)
    return assemble(
        codes,
        alpha,
        fill_unused(row_scale, least) if per_channel else fill_unused(row_scale, least).reshape(()),
        scheme,
        shape=weight.shape,
        group_axis=group_axis,
        channel_axis=channel_axis,
    )


def as_rows(weight: NDArray[np.floating], group_axis: int, channel_axis: int) -> NDArray[np.floating]:
    """Return a weight as (M, E, L): output channels, kernel positions (or 1), positions on the group axis."""
    rows = np.moveaxis(weight, (channel_axis, group_axis), (0, -1))
    return rows.reshape(rows.shape[0], -1, rows.shape[-1])


def assemble(
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    row_scale: NDArray[np.floating],
    scheme: WeightScheme,
    *,
    shape: tuple[int, ...],
    group_axis: int,
    channel_axis: int,
) -> QuantizedTensor:
    """Make a tensor of what was found for its rows.

    Parameters
    ----------
    codes : ndarray of int8
        In the order of `as_rows`, of any shape.
    alpha : ndarray of uint8
        In the same order with G in place of L, and 1 in place of the kernel positions with the granularity
        ``kernel``; or one value for all.
    row_scale : ndarray of float, shape (M,) or ()
    scheme : WeightScheme
    shape : tuple of int
        The weight's own shape.
    group_axis, channel_axis : int
        Its reduction axis and its axis of output channels.

    Raises
    ------
    WeightError
        If the parts do not fit each other.
    """
    moved = np.moveaxis(np.empty(shape, np.bool_), (channel_axis, group_axis), (0, -1)).shape

    def restore(array: NDArray[np.generic], leading: tuple[int, ...]) -> NDArray[np.generic]:
        array = array.reshape(*leading, -1)
        return np.ascontiguousarray(np.moveaxis(array, (0, -1), (channel_axis, group_axis)))

    spread = (moved[0], *(1,) * (len(moved) - 2)) if scheme.granularity is Granularity.KERNEL else moved[:-1]
    if alpha.size == 1:
        spread = (1,) * len(moved[:-1])
    tensor = QuantizedTensor(
        planes=(Plane(codes=restore(codes, moved[:-1]), alpha=restore(alpha, spread)),),  # type: ignore[arg-type]
        group=(np.arange(moved[-1]) // scheme.group_length(moved[-1])).astype(np.int32),
        group_axis=group_axis,
        channel_axis=channel_axis,
        row_scale=row_scale.astype(np.float32),
        scheme=scheme,
    )
    tensor.validate()
    return tensor


def least_row_scale(
    bias: NDArray[np.floating], activation_scale: float, products: int = 0
) -> NDArray[np.float64]:
    """Return the smallest row scales whose quantized bias stays below 2**30.

    Their products with the activation scale are normal float32 values, as a bias is stored with them.

    Parameters
    ----------
    bias : ndarray of float32, shape (M,)
    activation_scale : float
        The scale of the layer's quantized input, a float32 value.
    products : int
        K, the number of products that one output adds up. Beyond 33,000 of them the bias is kept
        smaller, so that ``255 * 127 * K`` and the bias together stay inside an int32.

    Returns
    -------
    ndarray of float64, shape (M,)

    Raises
    ------
    WeightError
        If a value of the bias is NaN or infinite.
    """
    check_finite("bias", bias)
    # The step is a float32 value, so no larger product is rounded to float32 below it.
    step: NDArray[np.float64] = np.abs(bias, dtype=np.float64) / _bias_limit(products)
    step = np.maximum(step, np.finfo(np.float32).tiny)
    return step / activation_scale


def largest_bias(
    activation_scale: float, row_scale: NDArray[np.floating], products: int
) -> NDArray[np.float64]:
    """Return the largest bias of each row that `least_row_scale` allows.

    Parameters
    ----------
    activation_scale : float
        The scale of the layer's quantized input, a float32 value.
    row_scale : ndarray of float, shape (M,)
    products : int
        K, the number of products that one output adds up.

    Returns
    -------
    ndarray of float64, shape (M,)
    """
    # A little less than the limit: the step is rounded to float32 when the bias is stored.
    return 0.999 * _bias_limit(products) * activation_scale * row_scale.astype(np.float64)


def quantize_bias(
    bias: NDArray[np.floating], activation_scale: float, row_scale: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Return ``round_half_even(bias / (activation_scale * row_scale))``.

    Parameters
    ----------
    bias : ndarray of float, shape (M,)
    activation_scale : float
        The scale of the layer's quantized input.
    row_scale : ndarray of float32, shape (M,) or ()

    Returns
    -------
    ndarray of int32, shape (M,)

    Raises
    ------
    WeightError
        If a value leaves the range that keeps the accumulator inside an int32.
    """
    # float32, as the scale that a file stores for the bias is float32.
    step = (np.float32(activation_scale) * row_scale).astype(np.float64)
    rounded = np.rint(bias.astype(np.float64) / step)
    highest = float(np.abs(rounded).max(initial=0.0))
    if not highest <= BIAS_LIMIT:
        raise WeightError(f"bias: found {highest:.4g} in units of the accumulator, wanted at most 2**30")
    return rounded.astype(np.int32)


def _bias_limit(products: int) -> float:
    return min(BIAS_LIMIT, 2**31 - 1 - 255 * INT8_LIMIT * products)


def lost_groups(weight: NDArray[np.floating], tensor: QuantizedTensor) -> int:
    """Count the groups that hold a nonzero weight but whose every alpha was rounded to 0."""
    starts = np.flatnonzero(np.diff(tensor.group, prepend=-1))
    nonzero = np.maximum.reduceat(np.abs(weight), starts, axis=tensor.group_axis) > 0
    kept = np.zeros_like(nonzero)
    for plane in tensor.planes:
        kept |= plane.alpha > 0
    return int(np.count_nonzero(nonzero & ~kept))


def signal_to_noise_db(signal: NDArray[np.floating], approximation: NDArray[np.floating]) -> float:
    """Return ``10 log10(sum(s^2) / sum((s - a)^2))`` in dB; infinite where both are equal.

    NaN where either holds NaN or infinity.
    """
    reference = signal.astype(np.float64)
    power = float(np.sum(reference**2))
    with np.errstate(invalid="ignore"):  # infinity less infinity
        noise = float(np.sum((reference - approximation) ** 2))
    return decibels(power, noise)


def decibels(signal: float, noise: float) -> float:
    """Return ``10 log10(signal / noise)`` of two powers.

    Infinite without noise, and minus infinity with noise but without signal.
    """
    if noise == 0.0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal else float("-inf")


def check_finite(what: str, values: NDArray[np.floating]) -> None:
    """Refuse NaN and infinity.

    Parameters
    ----------
    what : str
        What an error calls the values.
    values : ndarray of float

    Raises
    ------
    WeightError
        Saying how many values are not finite.
    """
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise WeightError(f"{what}: found {bad} of {values.size} values NaN or infinite, wanted finite ones")


def _grouped_rows(
    matrix: NDArray[np.floating], scheme: WeightScheme, least: NDArray[np.float64] | None
) -> tuple[NDArray[np.int8], NDArray[np.uint8], NDArray[np.float32]]:
    """Fit ``matrix`` (M, E, L), chunk of rows by chunk; codes (M, E, L), alpha as `fit_matrix` gives it."""
    M, E, L = matrix.shape
    step = max(1, _CHUNK // (E * L))
    parts = [
        fit_matrix(matrix[rows], scheme, None if least is None else least[rows])
        for rows in (slice(start, start + step) for start in range(0, M, step))
    ]
    codes, alpha, row_scale = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if scheme.alpha_limit == 1:
        alpha = np.ones((1, 1, 1), np.uint8)
    return codes, alpha, row_scale


def fit_matrix(
    matrix: NDArray[np.floating], scheme: WeightScheme, least_row_scale: NDArray[np.float64] | None
) -> tuple[NDArray[np.int8], NDArray[np.uint8], NDArray[np.float32]]:
    """Fit rows at scales of least squared error, in the groups of their scheme.

    Parameters
    ----------
    matrix : ndarray of float, shape (M, E, L)
        Rows as `as_rows` returns them.
    scheme : WeightScheme
    least_row_scale : ndarray of float64, shape (M,), or None
        Lower bounds on the row scales.

    Returns
    -------
    codes : ndarray of int8, shape (M, E, L)
    alpha : ndarray of uint8, shape (M, groups of a row)
        In the order of places, then groups of a place.
    row_scale : ndarray of float32, shape (M,)
        0 for a row of zeros; see `fgq.quantization.ternary.fit_rows` and `fgq.quantization.levels.fit_rows`.
    """
    M, E, L = matrix.shape
    if scheme.granularity is Granularity.KERNEL:
        groups = matrix.swapaxes(1, 2)
    elif scheme.granularity is Granularity.GROUP:
        N = scheme.group_length(L)
        padded = np.zeros((M, E, -(-L // N) * N))
        padded[..., :L] = matrix
        groups = padded.reshape(M, -1, N)
    else:
        groups = matrix.reshape(M, 1, -1)
    if scheme.codes.spec.fit is Fit.TERNARY:
        codes, alpha, row_scale = ternary.fit_rows(groups, scheme.alpha_limit, least_row_scale)
    else:
        codes, alpha, row_scale = levels.fit_rows(
            groups, scheme.max_code, scheme.alpha_limit, least_row_scale
        )
    if scheme.granularity is Granularity.KERNEL:
        codes = codes.swapaxes(1, 2)
    else:
        codes = codes.reshape(M, E, -1)[..., :L]
    return codes, alpha, row_scale


def int8_rows(
    matrix: NDArray[np.floating], scheme: WeightScheme, least: NDArray[np.float64] | None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Scale each row of (M, E, L) by its largest magnitude, without clipping, as AQT does (2105.03536).

    Returns codes (M, E, L) and the row scales (M,), 0 for a row of zeros.
    """
    largest = np.abs(matrix).max(axis=(1, 2)).astype(np.float64)
    row_scale = bounded_row_scale(largest / scheme.max_code, least)
    divisor = np.where(row_scale > 0, row_scale, 1.0)[:, None, None]
    codes = np.clip(np.rint(matrix / divisor), -scheme.max_code, scheme.max_code)
    return codes.astype(np.int8), row_scale.astype(np.float32)


def fill_unused(row_scale: NDArray[np.float32], least: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Give rows of zeros the scale of the others, or a finer one where their bias asks for it.

    Parameters
    ----------
    row_scale : ndarray of float32, shape (M,)
        0 for a row of zeros.
    least : ndarray of float64, shape (M,), or None
        Lower bounds, those of `least_row_scale`.

    Returns
    -------
    ndarray of float32, shape (M,)
        All positive.
    """
    used = row_scale[row_scale > 0]
    fill = np.full(row_scale.shape, np.median(used) if used.size else 1.0)
    if least is not None:
        # the bias is rounded to this scale: 2**24 steps are the digits of a float32
        enough = least * (BIAS_LIMIT / (1 << 24))
        fill = np.where(enough > _NO_BIAS, np.minimum(fill, enough), fill)
    return np.where(row_scale > 0, row_scale, bounded_row_scale(fill, least)).astype(np.float32)
