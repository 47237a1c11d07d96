"""Kernels: raw arrays in, raw arrays out, exact integers.

::

    w8[m, k] = sum over planes p of  alpha_p[m, g(k)] * code_p[m, k]         exact in an int8
    acc[m]   = sum over k of w8[m, k] * (x[k] - x_zero)  +  bias[m]          exact in an int32

:func:`ternary_matmul` and :func:`ternary_conv2d` do a layer in one call. Where a layer runs many times,
:func:`prepare_matmul` and :func:`prepare_conv2d` make it ready once. An *epilogue* turns the sums, while
they are still in the cache, into real values (:class:`Dequantize`) or into the next layer's activations
(:class:`Requantize`). All kernels give the same integers; :mod:`fgq.kernels.products.dispatch` picks the
fastest.

Symbols: M output channels, K weights in a reduction, G groups along it, C input channels, B images.
"""

if __name__ != "fgq.kernels":
    raise ImportError("import fgq.kernels: the folder imported by its own name is a second copy of it")

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels.products.weights import Plane, Weight
from fgq.kernels.window import Window

if TYPE_CHECKING:
    from fgq.kernels.operators.activations import dynamic_quantization, quantize_activations
    from fgq.kernels.products.epilogue import Dequantize, Epilogue, QuantizedAdd, Requantize, Sums
    from fgq.kernels.products.layer import Layer

_HOMES = {
    "Dequantize": "products.epilogue",
    "Epilogue": "products.epilogue",
    "Layer": "products.layer",
    "QuantizedAdd": "products.epilogue",
    "Requantize": "products.epilogue",
    "Sums": "products.epilogue",
    "dynamic_quantization": "operators.activations",
    "quantize_activations": "operators.activations",
}
"""What loads compiled code comes from its module when it is first asked for."""

__all__ = [
    "Dequantize",
    "Epilogue",
    "Layer",
    "Plane",
    "QuantizedAdd",
    "Requantize",
    "Sums",
    "Weight",
    "Window",
    "dynamic_quantization",
    "prepare_conv2d",
    "prepare_matmul",
    "quantize_activations",
    "ternary_conv2d",
    "ternary_matmul",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"fgq.kernels.{_HOMES[name]}"), name)


def prepare_matmul(
    weight: Weight,
    *,
    x_zero: int = 0,
    bias: NDArray[np.int32] | None = None,
    activation_bits: int = 8,
    kernel: str = "auto",
    tier: str | None = None,
    memory: str = "auto",
) -> "Layer":
    """Make a matrix product ready to run.

    Parameters
    ----------
    weight : Weight
        Codes int8 [M, K] and their scales.
    x_zero : int
        The activation that means 0.0, 0..255.
    bias : ndarray of int32, shape (M,), optional
        Added to the sums.
    activation_bits : {8, 4}
        4 where all activations are 0..15.
    kernel : {"auto", "multiplication-free", "dot", "reference"}
        The fastest kernel; the fastest that multiplies once per group of weights only; the fastest that
        multiplies; the plain NumPy one.
    tier : str, optional
        The instruction set to use, "amx", "avx512vnni", .., "portable", instead of the best.
    memory : {"auto", "fast", "compact"}
        Weights of dot-product kernels unpacked at load, or kept packed and decoded as they are used.

    Returns
    -------
    Layer
        To be called with activations uint8 [rows, K].

    Raises
    ------
    KernelError
        If a shape, dtype or value does not fit, sums could leave int32, or no kernel meets the wishes.
    """
    from fgq.kernels.products.layer import Layer, Wishes

    wishes = Wishes.read(kernel, tier, memory)
    return Layer(weight, x_zero=x_zero, bias=bias, activation_bits=activation_bits, wishes=wishes)


def prepare_conv2d(
    weight: Weight,
    *,
    window: Window = Window(),  # noqa: B008 - frozen
    x_zero: int = 0,
    bias: NDArray[np.int32] | None = None,
    activation_bits: int = 8,
    kernel: str = "auto",
    tier: str | None = None,
    memory: str = "auto",
) -> "Layer":
    """Make a convolution ready to run.

    Parameters
    ----------
    weight : Weight
        Codes int8 [M, kh, kw, C / groups] and their scales.
    window : Window
        Strides, padding with the value `x_zero`, dilations and conv groups.
    x_zero, bias, activation_bits, kernel, tier, memory
        As for :func:`prepare_matmul`.

    Returns
    -------
    Layer
        To be called with activations uint8 [B, H, W, C].

    Raises
    ------
    KernelError
        If a shape, dtype or value does not fit, sums could leave int32, or no kernel meets the wishes.
    """
    from fgq.kernels.products.layer import Layer, Wishes

    return Layer(
        weight,
        window=window,
        x_zero=x_zero,
        bias=bias,
        activation_bits=activation_bits,
        wishes=Wishes.read(kernel, tier, memory),
    )


def ternary_matmul(
    x: NDArray[np.uint8],
    weight: Weight,
    *,
    epilogue: "Epilogue | None" = None,
    residual: NDArray[Any] | None = None,
    threads: int = 1,
    **options: Any,
) -> NDArray[Any]:
    """Multiply quantized activations by a weight matrix with a scale per group.

    Parameters
    ----------
    x : ndarray of uint8, shape (rows, K)
        Activations; 4-bit ones are the values 0..15.
    weight : Weight
        Codes int8 [M, K] and their scales.
    epilogue : Epilogue, optional
        What becomes of the sums; without one they are returned as they are.
    residual : ndarray, shape (rows, M), optional
        What the epilogue adds.
    threads : int
        How many threads to use.
    **options
        Those of :func:`prepare_matmul`.

    Returns
    -------
    ndarray, shape (rows, M)
        ``acc[r, m] = sum_k w8[m, k] * (x[r, k] - x_zero) + bias[m]`` in int32, or what the epilogue makes
        of it.

    Raises
    ------
    KernelError
        If a shape, dtype or value does not fit, sums could leave int32, or no kernel meets the wishes.

    Examples
    --------
    >>> x = np.array([[10, 20, 30, 40]], np.uint8)
    >>> codes = np.array([[1, 0, -1, 1], [-1, -1, 1, 0]], np.int8)
    >>> alpha = np.array([[3, 5], [2, 7]], np.uint8)
    >>> group = np.array([0, 0, 1, 1], np.int32)
    >>> ternary_matmul(x, Weight.single(codes, alpha, group))
    array([[ 80, 150]], dtype=int32)
    """
    layer = prepare_matmul(weight, **options)
    return layer(x, epilogue=epilogue, residual=residual, threads=threads)


def ternary_conv2d(
    x: NDArray[np.uint8],
    weight: Weight,
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    groups: int = 1,
    epilogue: "Epilogue | None" = None,
    residual: NDArray[Any] | None = None,
    threads: int = 1,
    **options: Any,
) -> NDArray[Any]:
    """Convolve quantized images with kernels with a scale per group of input channels.

    Parameters
    ----------
    x : ndarray of uint8, shape (B, H, W, C)
        Activations; 4-bit ones are the values 0..15.
    weight : Weight
        Codes int8 [M, kh, kw, C / groups] and their scales.
    strides : tuple of int
        Steps (down, right) between output pixels.
    pads : tuple of int
        Padding (top, left, bottom, right) with the value `x_zero`, which adds nothing.
    dilations : tuple of int
        Distances (down, right) between taps.
    groups : int
        Conv groups.
    epilogue : Epilogue, optional
        What becomes of the sums; without one they are returned as they are.
    residual : ndarray, shape (B, OH, OW, M), optional
        What the epilogue adds.
    threads : int
        How many threads to use.
    **options
        Those of :func:`prepare_matmul`.

    Returns
    -------
    ndarray, shape (B, OH, OW, M)
        The sums in int32, channels last, or what the epilogue makes of them.

    Raises
    ------
    KernelError
        If a shape, dtype or value does not fit, sums could leave int32, or no kernel meets the wishes.

    Examples
    --------
    >>> x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8).reshape(1, 3, 3, 1)
    >>> codes = np.array([[1, 0], [0, -1]], np.int8).reshape(1, 2, 2, 1)
    >>> alpha = np.full((1, 2, 2, 1), 3, np.uint8)
    >>> ternary_conv2d(x, Weight.single(codes, alpha, np.zeros(1, np.int32)))[0, :, :, 0]
    array([[-12, -12],
           [-12, -12]], dtype=int32)
    """
    window = Window(strides=strides, pads=pads, dilations=dilations, groups=groups)
    layer = prepare_conv2d(weight, window=window, **options)
    return layer(x, epilogue=epilogue, residual=residual, threads=threads)
