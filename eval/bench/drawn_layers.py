"""Layers with drawn weights and activations, and the kernels made ready to run them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.eval.bench.shapes import Conv, Shape
from fgq.kernels import (
    Dequantize,
    Layer,
    Requantize,
    Weight,
    prepare_conv2d,
    prepare_matmul,
    quantize_activations,
)
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.quantization.weights import quantize_weight

_DISTINCT_OUTPUTS = 512
"""Output channels whose weights are drawn; further ones repeat them, for no kernel looks at values."""

_REACH = 4.0
"""Standard deviations that the integers span."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """What integers mean: ``real = scale * (integer - zero_point)``.

    Parameters
    ----------
    bits : int
        Integers are 0 .. 2**bits - 1.
    scale : float
    zero_point : int
    """

    bits: int
    scale: float
    zero_point: int

    @classmethod
    def signed(cls, bits: int) -> Quantizer:
        """Return one for normal numbers."""
        return cls(bits=bits, scale=2 * _REACH / (2**bits - 1), zero_point=2 ** (bits - 1))

    @classmethod
    def positive(cls, bits: int) -> Quantizer:
        """Return one for what a ReLU leaves of normal numbers."""
        return cls(bits=bits, scale=_REACH / (2**bits - 1), zero_point=0)

    @property
    def highest(self) -> int:
        """The largest integer."""
        return (1 << self.bits) - 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DrawnLayer:
    """A layer to time.

    Parameters
    ----------
    shape : MatMul or Conv
    group_size : int or None
        N; None for 8-bit weights.
    weight : Weight
        Its codes and integer scales.
    row_scale : ndarray of float32, shape (M,)
        Scale of each output channel.
    x : ndarray of float32, shape (rows, K) or (1, H, W, C)
        Real activations: normal ones for a matrix product, their magnitudes for a convolution.
    """

    shape: Shape
    group_size: int | None
    weight: Weight
    row_scale: NDArray[np.float32]
    x: NDArray[np.float32]

    def input_quantizer(self, bits: int) -> Quantizer:
        """Return how activations become integers."""
        return Quantizer.positive(bits) if isinstance(self.shape, Conv) else Quantizer.signed(bits)

    def output_quantizer(self, bits: int) -> Quantizer:
        """Return how a convolution's results become the next layer's activations."""
        return Quantizer.signed(bits)

    def integers(self, bits: int) -> NDArray[np.uint8]:
        """Return the quantized activations."""
        given = self.input_quantizer(bits)
        return quantize_activations(self.x, given.scale, given.zero_point, bits)


def draw_layer(shape: Shape, group_size: int, seed: int = 0) -> DrawnLayer:
    """Draw normal weights, quantize them as a converter does, and draw activations.

    Parameters
    ----------
    shape : MatMul or Conv
    group_size : int
        N, for layers that get ternary weights.
    seed : int
        The same one draws the same layer.
    """
    rng = np.random.default_rng(seed)
    outputs, *rest = shape.weights
    drawn = rng.standard_normal((min(outputs, _DISTINCT_OUTPUTS), *rest), np.float32)
    drawn /= np.sqrt(np.float32(np.prod(rest)))  # so that results are of the size of the activations
    scheme = WeightScheme(group_size=group_size) if shape.ternary else WeightScheme(codes=Codes.INT8)
    tensor = quantize_weight(drawn, scheme, group_axis=drawn.ndim - 1, channel_axis=0)
    again = np.arange(outputs) % len(drawn)
    plane = tensor.planes[0]
    alpha = np.broadcast_to(plane.alpha, (*drawn.shape[:-1], plane.alpha.shape[-1]))
    size = (
        (1, shape.size, shape.size, shape.channels) if isinstance(shape, Conv) else (shape.rows, shape.inputs)
    )
    x = rng.standard_normal(size, np.float32)
    return DrawnLayer(
        shape=shape,
        group_size=group_size if shape.ternary else None,
        weight=Weight.single(plane.codes[again], alpha[again], tensor.group),
        row_scale=tensor.row_scale[again],
        x=np.abs(x) if isinstance(shape, Conv) else x,
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Contender:
    """One of our kernels, ready to run a layer.

    Parameters
    ----------
    kernel, tier, memory : str
        Which one it is.
    multiplication_free : bool
        Whether it adds and subtracts only, but for one multiplication per group.
    resident_bytes : int
        Memory that its weights take.
    load_seconds : float
        Time to bring the weights into its form, compiled code at hand.
    run : callable
        Does what is timed: float32 activations to float32 results for a matrix product, activation
        quantization included; uint8 to uint8, channels last, for a convolution.
    """

    kernel: str
    tier: str
    memory: str
    multiplication_free: bool
    resident_bytes: int
    load_seconds: float
    run: Callable[[], NDArray[Any]]


def prepare(layer: DrawnLayer, *, wish: str, memory: str, bits: int, threads: int) -> Contender:
    """Make a kernel ready for a layer.

    Parameters
    ----------
    layer : DrawnLayer
    wish, memory : str
        As for `fgq.kernels.prepare_matmul`.
    bits : int
        Bits of the activations, 8 or 4.
    threads : int
        How many to use.

    Raises
    ------
    KernelError
        If no kernel meets the wishes.
    """
    shape, given, made = layer.shape, layer.input_quantizer(bits), layer.output_quantizer(bits)
    wishes: dict[str, Any] = {"kernel": wish, "memory": memory, "activation_bits": bits}

    def load() -> Layer:
        if isinstance(shape, Conv):
            ready = prepare_conv2d(layer.weight, window=shape.window, x_zero=given.zero_point, **wishes)
        else:
            ready = prepare_matmul(layer.weight, x_zero=given.zero_point, **wishes)
        ready.prepare(shape.pixels)
        return ready

    load()  # compiles what preparing needs
    began = time.perf_counter()
    ready = load()
    load_seconds = time.perf_counter() - began
    scale = np.float32(given.scale) * layer.row_scale

    if isinstance(shape, Conv):
        integers = layer.integers(bits)
        requantize = Requantize(scale / np.float32(made.scale), made.zero_point, highest=made.highest)

        def run() -> NDArray[Any]:
            return ready(integers, epilogue=requantize, threads=threads)

    else:
        dequantize = Dequantize(scale)

        def run() -> NDArray[Any]:
            integers = quantize_activations(layer.x, given.scale, given.zero_point, bits, threads)
            return ready(integers, epilogue=dequantize, threads=threads)

    prepared = ready.prepare(shape.pixels)
    return Contender(
        kernel=prepared.kernel.module,
        tier=prepared.kernel.isa.name,
        memory=prepared.memory.value,
        multiplication_free=prepared.kernel.multiplication_free,
        resident_bytes=prepared.resident_bytes,
        load_seconds=load_seconds,
        run=run,
    )
