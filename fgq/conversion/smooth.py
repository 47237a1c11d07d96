r"""Scales of channels that make activations easier to quantize, chosen by data.

One scale serves a whole tensor of activations, so that channels of small values get few levels. Dividing
channel j by

.. math:: s_j = \max|x_j|^\alpha / \max|w_j|^{1 - \alpha}

and multiplying the weights that read it by as much leaves the network as it was (SmoothQuant, Xiao et al.
2022, arXiv 2211.10438, equation 4). The exponent is the one with the least relative error of the layers'
outputs on held-out data, with activations and the nearest weights quantized; scales are rounded to powers of
two, which change no float value but its exponent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.passes.move_scales import MoveScales, Reading, find_readings
from fgq.converters.select import Choice
from fgq.data.calibration import tensor_values
from fgq.data.feed import Feed
from fgq.quantization.mmse import StreamingHistogram, choose_quantizer
from fgq.quantization.scheme import ActivationScheme, Quantizer, WeightScheme
from fgq.quantization.weights import as_rows
from fgq.recipes.rows import Grouping, nearest

EXPONENTS = (0.25, 0.4, 0.5, 0.6, 0.75, 0.9)
"""Candidates of alpha."""

LEAST_GAIN = 0.05
"""Scales are moved where they lower the error by this share of it at least."""

BATCHES = 40
"""Batches that are looked at, spread over all."""

ROWS = 512
"""Positions that choose the quantizers, and as many held-out ones that judge."""

OUTPUTS = 128
"""Output channels of a layer by which scales are judged, spread over all."""

Single = NDArray[np.float32]


def smooth(
    model: ir.Model,
    choices: Sequence[Choice],
    feeds: Sequence[Feed],
    progress: Callable[[int, int], None],
) -> list[Choice]:
    """Move scales of channels from activations into weights, in place, where this lowers the error.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model; its outputs do not change.
    choices : sequence of Choice
        Its layers, in graph order.
    feeds : sequence of feed
        Calibration data.
    progress : callable
        Called as ``progress(done, total)``.

    Returns
    -------
    list of Choice
        With a note where a layer's input was scaled.
    """
    by_node = {choice.layer.node: choice for choice in choices}
    readings = find_readings([choice.layer for choice in choices if choice.activations is not None])
    samples = _sample(model, readings, feeds)
    scales: dict[Reading, Single] = {}
    notes: dict[ir.Node, str] = {}
    for done, reading in enumerate(readings):
        progress(done, len(readings))
        found = _best(reading, samples[reading], [by_node[layer.node] for layer in reading.layers])
        if found is not None:
            scales[reading], gain, alpha = found
            place = "a Mul" if reading.source is None else reading.source[-1].node.name
            note = f"input scaled by channel in {place}: alpha {alpha}, error -{100 * gain:.0f} %"
            notes |= {layer.node: note for layer in reading.layers}
    MoveScales(scales)(model)
    return [_with_note(choice, notes.get(choice.layer.node, "")) for choice in choices]


class _Sample(NamedTuple):
    """Some positions of a tensor, channels last, and the largest magnitude of each channel."""

    train: Single
    held_out: Single
    largest: Single


def _sample(model: ir.Model, readings: Sequence[Reading], feeds: Sequence[Feed]) -> Mapping[Reading, _Sample]:
    """Collect positions of each tensor, from even batches to choose by and from odd ones to judge by."""
    places = np.unique(np.linspace(0, len(feeds) - 1, min(BATCHES, len(feeds))).astype(int))
    few = [feeds[place] for place in places]
    rng = np.random.default_rng(0)
    found: dict[Reading, list[Single]] = {reading: [] for reading in readings}
    largest: dict[Reading, Single] = {}
    each = -(-2 * ROWS // len(few))
    names = [str(reading.tensor.name) for reading in readings]
    for values in tensor_values(model, names, few):
        for reading in readings:
            array = np.moveaxis(values[str(reading.tensor.name)], reading.channel_axis, -1)
            rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
            peak = np.abs(rows).max(axis=0, initial=0)
            largest[reading] = np.maximum(largest.get(reading, peak), peak)
            found[reading].append(rows[rng.permutation(len(rows))[:each]])
    return {reading: _halves(batches, largest[reading]) for reading, batches in found.items()}


def _halves(batches: Sequence[Single], largest: Single) -> _Sample:
    if len(batches) == 1:
        return _Sample(batches[0][::2], batches[0][1::2], largest)
    return _Sample(np.concatenate(batches[::2]), np.concatenate(batches[1::2]), largest)


def _best(reading: Reading, sample: _Sample, choices: Sequence[Choice]) -> tuple[Single, float, float] | None:
    """Return the best scales, the share of the error they save and their exponent, if they save enough."""
    if not len(sample.train) or not len(sample.held_out):
        return None
    weights = [_some_rows(choice) for choice in choices]
    heaviest = np.max([np.abs(weight).max(axis=(0, 1)) for weight in weights], axis=0)
    schemes = [choice.weights for choice in choices]
    bits = max(choice.activations.width for choice in choices if choice.activations is not None)

    def error(scales: Single) -> float:
        return _error(sample, weights, schemes, bits, scales)

    plain = error(np.ones_like(sample.largest))
    tried = [(alpha, _scales(sample.largest, heaviest, alpha)) for alpha in EXPONENTS]
    errors = [error(scales) for _, scales in tried]
    best = int(np.argmin(errors))
    if not 0 <= errors[best] <= (1 - LEAST_GAIN) * plain or not plain:
        return None
    alpha, scales = tried[best]
    return scales, 1 - errors[best] / plain, alpha


def _some_rows(choice: Choice) -> NDArray[np.float64]:
    """Return some rows of a layer's weight, (M, E, C)."""
    layer = choice.layer
    rows = as_rows(layer.weight_array, layer.group_axis, layer.channel_axis)
    places = np.unique(np.linspace(0, len(rows) - 1, min(OUTPUTS, len(rows))).astype(int))
    some: NDArray[np.float64] = rows[places].astype(np.float64)
    return some


def _scales(largest: Single, heaviest: NDArray[np.float64], alpha: float) -> Single:
    """Return powers of two with a geometric mean near 1, and 1 for channels always zero or read by none."""
    used = (largest > 0) & (heaviest > 0)
    exponents = np.zeros(largest.shape)
    exponents[used] = alpha * np.log2(largest[used]) - (1 - alpha) * np.log2(heaviest[used])
    if used.any():
        exponents[used] -= exponents[used].mean()
    scales: Single = np.exp2(np.rint(exponents)).astype(np.float32)
    return scales


def _error(
    sample: _Sample,
    weights: Sequence[NDArray[np.float64]],
    schemes: Sequence[WeightScheme],
    bits: int,
    scales: Single,
) -> float:
    """Return the relative squared error of the layers' outputs on held-out data, the mean over positions.

    A convolution's kernel positions count as outputs of their own. Each position is measured by its own
    outputs: a normalization that follows makes all of them alike, and in a sum the few tokens of huge values
    that encoders have would speak for all others.
    """
    histogram = StreamingHistogram("smoothed")
    histogram.update(sample.train / scales)
    quantizer = choose_quantizer(histogram, ActivationScheme(bits=bits))
    given = _quantized(sample.held_out / scales, quantizer)
    error = 0.0
    for weight, scheme in zip(weights, schemes, strict=True):
        M, E, L = weight.shape
        grouping = Grouping.of(scheme, E, L)
        rows = nearest((weight * scales).reshape(M, -1), scheme, grouping, None)
        exact = sample.held_out @ weight.reshape(-1, L).T
        found = given @ rows.weights(grouping).reshape(-1, L).T
        power, lost = (np.sum(square**2, axis=1) for square in (exact, found - exact))
        error += float(np.sum(lost[power > 0] / power[power > 0])) / len(power)
    return error


def _quantized(values: Single, quantizer: Quantizer) -> Single:
    integers = np.clip(np.rint(values / quantizer.scale) + quantizer.zero_point, 0, quantizer.highest)
    real: Single = ((integers - quantizer.zero_point) * np.float32(quantizer.scale)).astype(np.float32)
    return real


def _with_note(choice: Choice, note: str) -> Choice:
    if not note:
        return choice
    return replace(choice, note=f"{choice.note}; {note}" if choice.note else note)
