"""Estimated latency: each layer timed by itself, float in onnxruntime and quantized in fgq's kernels."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.float_layers import Layer
from fgq.converters.select import Choice
from fgq.data.feed import Feed
from fgq.graph.windows import read_window
from fgq.kernels import Plane, Weight, prepare_conv2d, prepare_matmul
from fgq.kernels.threads import default_threads
from fgq.plan.options import Option
from fgq.quantization.scheme import WeightScheme
from fgq.quantization.weights import quantize_weight
from fgq.recipes.pieces import Piece, Prefix
from fgq.runtime.steps.products import channels_first

_RUNS = 7
"""The median of so many runs is taken, after one that does not count."""


def seconds_of(
    model: ir.Model, choices: Sequence[Choice], options: Sequence[Sequence[Option]], feed: Feed
) -> list[NDArray[np.float64]]:
    """Time each layer under each of its options, on the shapes that a sample gives it.

    An estimate: what stands between the layers is not in it, nor the quantizers, and a layer alone finds
    its weights in the caches. It holds for this machine and its load now.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model.
    choices : sequence of Choice
        Its layers.
    options : sequence of sequence of Option
    feed : feed
        One sample.

    Returns
    -------
    list of ndarray of float64
        Seconds; 0 for a layer of one option.
    """
    prefix = Prefix(model, [feed], {})
    found = []
    for choice, schemes in zip(choices, options, strict=True):
        seconds = np.zeros(len(schemes))
        if len(schemes) > 1:
            layer = choice.layer
            prefix.advance(layer.node)
            x = prefix.batches[0][str(layer.activation.name)]
            for place, scheme in enumerate(schemes):
                run = _float_run(model, layer, x) if scheme is None else _integer_run(choice, scheme, x.shape)
                seconds[place] = _time(run)
        found.append(seconds)
    return found


def _time(run: Callable[[], object]) -> float:
    run()
    taken = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        run()
        taken.append(time.perf_counter() - begin)
    return median(taken)


def _float_run(model: ir.Model, layer: Layer, x: NDArray[np.float32]) -> Callable[[], object]:
    piece = Piece(model, [layer.node], [str(layer.output.name)])
    return lambda: piece({str(layer.activation.name): x})


def _integer_run(choice: Choice, scheme: WeightScheme, shape: Sequence[int]) -> Callable[[], object]:
    layer = choice.layer
    bits = 8 if choice.activations is None else choice.activations.bits
    tensor = quantize_weight(
        layer.weight_array, scheme, group_axis=layer.group_axis, channel_axis=layer.channel_axis
    )
    weight, threads = channels_first(tensor), default_threads()
    rng = np.random.default_rng(0)
    if layer.op_type == "Conv":
        window = read_window(layer.node, layer.shape[2:], tuple(shape[2:]))
        assert window is not None  # the image is given
        conv = prepare_conv2d(weight, window=window, activation_bits=bits)
        image = rng.integers(0, 1 << bits, (shape[0], *shape[2:], shape[1]), np.uint8)
        return lambda: conv(image, threads=threads)
    # A batch of matrices is as much work as one of all their rows.
    K = layer.shape[layer.group_axis]
    planes = [Plane(p.codes.reshape(-1, K), p.alpha.reshape(-1, p.alpha.shape[-1])) for p in weight.planes]
    batch = math.prod(layer.shape) // (K * layer.shape[layer.channel_axis])
    rows = max(1, math.prod(shape) // (K * batch))
    product = prepare_matmul(Weight(tuple(planes), weight.group), activation_bits=bits)
    x = rng.integers(0, 1 << bits, (rows, K), np.uint8)
    return lambda: product(x, threads=threads)
