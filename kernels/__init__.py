"""Kernels: raw arrays in, raw arrays out, exact integers.

Layers of a network are done in three steps, and all kernels of one operation give the same integers:
:mod:`fgq.kernels.dispatch` picks a kernel and prepares its weights once; running it turns uint8
activations into int32 sums; :mod:`fgq.kernels.epilogue` makes of these real values or the next
activations. :func:`ternary_matmul` and :func:`ternary_conv2d` do the first two in one call.

::

    w8[m, k] = alpha[m, g(k)] * code[m, k]                                   exact in an int8
    acc[m]   = sum over k of w8[m, k] * (x[k] - x_zero)  +  bias[m]          exact in an int32

Symbols: M output channels, K weights in a reduction, G groups along it, C input channels, B images.
"""

if __name__ != "fgq.kernels":
    raise ImportError("import fgq.kernels: the folder imported by its own name is a second copy of it")

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels.dispatch import Problem, Wish, select_kernel
from fgq.kernels.weights import check_ternary
from fgq.kernels.window import Window

__all__ = ["ternary_conv2d", "ternary_matmul"]


def ternary_matmul(
    x: NDArray[np.uint8],
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    group: NDArray[np.int32],
    *,
    x_zero: int = 0,
    bias: NDArray[np.int32] | None = None,
    kernel: str = "auto",
) -> NDArray[np.int32]:
    """Multiply quantized activations by a ternary weight matrix with a scale per group.

    Parameters
    ----------
    x : ndarray of uint8, shape (rows, K)
        Activations; 4-bit ones are the values 0..15.
    codes : ndarray of int8, shape (M, K)
        Values in {-1, 0, 1}.
    alpha : ndarray of uint8, shape (M, G)
        Group scales, 0..127.
    group : ndarray of int32, shape (K,)
        The group of each position along K: 0, .., 0, 1, .., G - 1; lengths may differ.
    x_zero : int
        The activation that means 0.0, 0..255.
    bias : ndarray of int32, shape (M,), optional
        Added to the sums.
    kernel : {"auto", "reference", "multiplication-free"}
        The fastest kernel, the plain NumPy one, or the fastest that multiplies once per group only.

    Returns
    -------
    ndarray of int32, shape (rows, M)
        ``acc[r, m] = sum_k alpha[m, group[k]] * codes[m, k] * (x[r, k] - x_zero) + bias[m]``.

    Raises
    ------
    KernelError
        If a shape, dtype or value does not fit, or sums could leave int32.

    Examples
    --------
    >>> x = np.array([[10, 20, 30, 40]], np.uint8)
    >>> codes = np.array([[1, 0, -1, 1], [-1, -1, 1, 0]], np.int8)
    >>> alpha = np.array([[3, 5], [2, 7]], np.uint8)
    >>> group = np.array([0, 0, 1, 1], np.int32)
    >>> ternary_matmul(x, codes, alpha, group)
    array([[ 80, 150]], dtype=int32)
    """
    chosen = select_kernel(Problem(op="matmul", ternary=True), _wish(kernel))
    check_ternary(codes)
    return chosen.run(chosen.prepare(codes, alpha, group, _bias(bias, codes), x_zero), x)


def ternary_conv2d(
    x: NDArray[np.uint8],
    codes: NDArray[np.int8],
    alpha: NDArray[np.uint8],
    group: NDArray[np.int32],
    *,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    groups: int = 1,
    x_zero: int = 0,
    bias: NDArray[np.int32] | None = None,
    kernel: str = "auto",
) -> NDArray[np.int32]:
    """Convolve quantized images with ternary kernels with a scale per group of input channels.

    Parameters
    ----------
    x : ndarray of uint8, shape (B, H, W, C)
        Activations; 4-bit ones are the values 0..15.
    codes : ndarray of int8, shape (M, kh, kw, C / groups)
        Values in {-1, 0, 1}.
    alpha : ndarray of uint8, shape (M, kh, kw, G)
        Group scales, 0..127.
    group : ndarray of int32, shape (C / groups,)
        The scale group of each input channel: 0, .., 0, 1, .., G - 1; lengths may differ.
    strides : tuple of int
        Steps (down, right) between output pixels.
    pads : tuple of int
        Padding (top, left, bottom, right) with the value `x_zero`, which adds nothing.
    dilations : tuple of int
        Distances (down, right) between taps.
    groups : int
        Conv groups.
    x_zero : int
        The activation that means 0.0, 0..255.
    bias : ndarray of int32, shape (M,), optional
        Added to the sums.
    kernel : {"auto", "reference", "multiplication-free"}
        The fastest kernel, the plain NumPy one, or the fastest that multiplies once per group only.

    Returns
    -------
    ndarray of int32, shape (B, OH, OW, M)
        The sums, channels last.

    Raises
    ------
    KernelError
        If a shape, dtype or value does not fit, or sums could leave int32.

    Examples
    --------
    >>> x = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8).reshape(1, 3, 3, 1)
    >>> codes = np.array([[1, 0], [0, -1]], np.int8).reshape(1, 2, 2, 1)
    >>> alpha = np.full((1, 2, 2, 1), 3, np.uint8)
    >>> ternary_conv2d(x, codes, alpha, np.zeros(1, np.int32))[0, :, :, 0]
    array([[-12, -12],
           [-12, -12]], dtype=int32)
    """
    wish = _wish(kernel)
    window = Window(strides=strides, pads=pads, dilations=dilations, groups=groups)
    depthwise = codes.shape[-1:] == (1,) and groups > 1
    chosen = select_kernel(Problem(op="conv2d", ternary=True, depthwise=depthwise), wish)
    check_ternary(codes)
    return chosen.run(chosen.prepare(codes, alpha, group, _bias(bias, codes), x_zero, window), x)


def _wish(kernel: str) -> Wish:
    if kernel not in list(Wish):
        raise KernelError(f"kernel: found {kernel!r}, wanted one of {', '.join(Wish)}")
    return Wish(kernel)


def _bias(bias: NDArray[np.int32] | None, codes: NDArray[np.int8]) -> NDArray[np.int32]:
    return np.zeros(codes.shape[:1], np.int32) if bias is None else bias
