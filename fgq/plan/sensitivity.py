"""Sensitivities: how far a network's output moves when one layer alone is quantized.

The measure is the Kullback-Leibler divergence of a classifier's probabilities from the float ones, and of
other networks the relative squared error of the outputs. Both are of second order in small errors, so that
those of independent layers add up (the divergence as in ZeroQ, Cai et al. 2020, arXiv 2001.00281).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.select import Choice
from fgq.data.feed import Feed
from fgq.format.outputs import divergence, relative_error
from fgq.plan.options import Option
from fgq.quantization.mmse import StreamingHistogram, choose_quantizer
from fgq.quantization.scheme import ActivationScheme, WeightScheme
from fgq.quantization.weights import quantize_weight
from fgq.recipes.pieces import Piece, Prefix, Replacement, Values

DIVERGENCE = "Kullback-Leibler divergence, nats"
RELATIVE_ERROR = "relative squared error"

_SAMPLES = 64
"""Sensitivities are measured on the first batches of so many samples."""


def sensitivities(
    model: ir.Model,
    choices: Sequence[Choice],
    options: Sequence[Sequence[Option]],
    feeds: Sequence[Feed],
    scores: str | None,
    progress: Callable[[int, int], None],
) -> list[NDArray[np.float64]]:
    """Measure what each option of each layer does to the output, weights and input of the layer quantized.

    Weights become the nearest of the scheme, and the input has the quantizer of least squared error.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model.
    choices : sequence of Choice
        Its layers.
    options : sequence of sequence of Option
        What each of them may become; a layer of one option is not measured.
    feeds : sequence of feed
        Calibration data, of which the first batches are used.
    scores : str or None
        The output that scores classes, if there is one (`fgq.format.outputs.classifier_output`).
    progress : callable
        Called as ``progress(done, total)``.

    Returns
    -------
    list of ndarray of float64
        For each layer, the sensitivity to each option; 0 for float.
    """
    nodes = list(model.graph)
    outputs = {str(value.name) for value in model.graph.outputs}
    prefix = Prefix(model, _first(feeds), {})
    whole = Piece(model, nodes, sorted(outputs))
    exact = [whole(values) for values in prefix.batches]
    found = []
    for done, (choice, schemes) in enumerate(zip(choices, options, strict=True)):
        progress(done, len(choices))
        costs = np.zeros(len(schemes))
        if len(schemes) > 1:
            prefix.advance(choice.layer.node)
            after = nodes[nodes.index(choice.layer.node) + 1 :]
            made = sorted(outputs & {str(value.name) for node in after for value in node.outputs})
            rest = Piece(model, after, made)
            inputs = _quantized_inputs(choice, prefix.batches)
            for place, scheme in enumerate(schemes):
                if scheme is not None:
                    alone = _layer_alone(model, choice, scheme)
                    given = zip(prefix.batches, inputs, strict=True)
                    moved = [_ends(alone, rest, values, x, outputs) for values, x in given]
                    costs[place] = _change(exact, moved, scores)
        found.append(costs)
    return found


def _ends(alone: Piece, rest: Piece, values: Values, given: Values, outputs: set[str]) -> Values:
    """Return the outputs of the network when its layer reads `given`."""
    behind = values | alone(given)
    return {name: array for name, array in (behind | rest(behind)).items() if name in outputs}


def _layer_alone(model: ir.Model, choice: Choice, scheme: WeightScheme) -> Piece:
    layer = choice.layer
    tensor = quantize_weight(
        layer.weight_array, scheme, group_axis=layer.group_axis, channel_axis=layer.channel_axis
    )
    replaced = {layer.node: Replacement(layer.weight_index, tensor.dequantize())}
    return Piece(model, [layer.node], [str(layer.output.name)], replaced)


def _quantized_inputs(choice: Choice, batches: Sequence[Values]) -> list[Values]:
    """Return what the layer reads, quantized and back."""
    name = str(choice.layer.activation.name)
    if choice.activations is None:
        return [{name: values[name]} for values in batches]
    return [{name: array} for array in _through_integers([b[name] for b in batches], choice.activations)]


def _through_integers(
    arrays: Sequence[NDArray[np.float32]], scheme: ActivationScheme
) -> list[NDArray[np.float32]]:
    histogram = StreamingHistogram("layer input")
    for array in arrays:
        histogram.update(array)
    quantizer = choose_quantizer(histogram, scheme)
    scale, zero = np.float32(quantizer.scale), np.float32(quantizer.zero_point)
    return [
        scale * (np.clip(np.rint(array / scale) + zero, 0, np.float32(quantizer.highest)) - zero)
        for array in arrays
    ]


def _change(exact: Sequence[Values], found: Sequence[Values], scores: str | None) -> float:
    if scores is None:
        return relative_error(exact, found)
    pairs = zip(exact, found, strict=True)
    return float(
        np.mean(np.concatenate([divergence(mine[scores], theirs[scores]) for mine, theirs in pairs]))
    )


def _first(feeds: Sequence[Feed]) -> list[Feed]:
    """Return the first batches, up to _SAMPLES samples."""
    lengths = [next((len(array) for array in feed.values() if array.ndim), 1) for feed in feeds]
    return list(feeds[: 1 + int(np.searchsorted(np.cumsum(lengths), _SAMPLES))])
