r"""Two low-precision tensors for the weights, or the inputs, of layers that one fits badly.

OMSE (Choukroun et al. 2019, arXiv 1902.06822) writes such a tensor as a sum of two,

.. math:: T \approx s_1 q_1 + s_2 q_2,

wherever one loses more than a threshold of its squared sum. The scales here are those whose sums are evenly
spaced and leave nothing out: ``s_1 = 15 s_2`` for the codes -7..7 (`fgq.quantization.scheme.Codes.DUAL`), and
``s_1 = 16 s_2`` for the codes 0..15. The pair of activations is then an 8-bit integer, ``q = 16 q_1 + q_2``
with the zero point split in the same way, and a layer's sum over it is

.. math:: \sum_k w_k (q_k - z) = 16 \sum_k w_k (q_{1,k} - z_1) + \sum_k w_k (q_{2,k} - z_2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fgq.config import ConversionConfig
from fgq.converters.select import Choice
from fgq.quantization.mmse import StreamingHistogram, choose_quantizer, expected_error
from fgq.quantization.scheme import ActivationScheme, Codes
from fgq.quantization.weights import quantize_weight


def second_weights(choices: Sequence[Choice], config: ConversionConfig) -> list[Choice]:
    """Give layers two INT4 tensors where one loses too much of their weights.

    Parameters
    ----------
    choices : sequence of Choice
    config : ConversionConfig
        `dual_weights_above` is the share of the squared sum of weights that one tensor may lose.
    """
    limit = config.dual_weights_above
    if limit is None:
        return list(choices)
    return [_with_second_weight(choice, limit) for choice in choices]


def second_inputs(
    choices: Sequence[Choice], histograms: Mapping[str, StreamingHistogram], limit: float | None
) -> list[Choice]:
    """Give layers two 4-bit tensors of activations where one loses too much of what they read.

    Parameters
    ----------
    choices : sequence of Choice
    histograms : mapping of str to StreamingHistogram
        What was observed of their inputs, by tensor name.
    limit : float or None
        The share of the squared sum of activations that one tensor may lose; None where none gets a second.
    """
    found = []
    for choice in choices:
        if limit is not None and choice.activations == ActivationScheme(bits=4):
            histogram = histograms[str(choice.layer.activation.name)]
            quantizer = choose_quantizer(histogram, choice.activations)
            lost = 10 ** (-expected_error(histogram, quantizer).snr_db / 10)
            if lost > limit:
                note = _note(choice, f"two 4-bit inputs: one loses {100 * lost:.1f} %")
                choice = replace(choice, activations=ActivationScheme(bits=4, tensors=2), note=note)
        found.append(choice)
    return found


def _with_second_weight(choice: Choice, limit: float) -> Choice:
    if choice.weights.codes is not Codes.INT4:
        return choice
    layer = choice.layer
    weight = layer.weight_array
    one = quantize_weight(
        weight, choice.weights, group_axis=layer.group_axis, channel_axis=layer.channel_axis
    ).dequantize()
    power = float(np.sum(np.square(weight, dtype=np.float64)))
    lost = float(np.sum(np.square(weight - one, dtype=np.float64))) / power if power else 0.0
    if lost <= limit:
        return choice
    note = _note(choice, f"two INT4 tensors: one loses {100 * lost:.1f} %")
    return replace(choice, weights=replace(choice.weights, codes=Codes.DUAL), note=note)


def _note(choice: Choice, added: str) -> str:
    return f"{choice.note}; {added}" if choice.note else added
