"""Random layers for the tests of kernels."""

import numpy as np

from fgq.kernels import Plane, Weight
from fgq.kernels.products import reference

KINDS = ("ternary", "tied", "two planes", "int4", "dual int4", "int8")


def draw_weight(rng, kind, shape, group_size):
    """Draw a weight whose int8 sums reach -127 and 127 where the kind allows it."""
    group = (np.arange(shape[-1]) // group_size).astype(np.int32)
    scales = (*shape[:-1], int(group[-1]) + 1)

    def plane(code, alpha):
        codes = rng.integers(-code, code + 1, shape).astype(np.int8)
        codes[rng.random(shape[0]) < 0.1] = 0  # whole rows of zeros
        codes[rng.random(shape[0]) < 0.1] = -code
        drawn = rng.integers(0, alpha + 1, scales).astype(np.uint8)
        drawn[rng.random(shape[0]) < 0.1] = alpha
        return Plane(codes, drawn)

    planes = {
        "ternary": lambda: (plane(1, 127),),
        "tied": lambda: (plane(4, 31),),
        "two planes": lambda: (plane(1, 100), plane(1, 27)),
        "int4": lambda: (plane(7, 18),),
        "dual int4": lambda: (plane(7, 9), plane(7, 9)),
        "int8": lambda: (Plane(rng.integers(-127, 128, shape).astype(np.int8), np.ones(scales, np.uint8)),),
    }
    return Weight(planes[kind](), group)


def draw_bias(rng, outputs):
    return rng.integers(-(2**28), 2**28, outputs, dtype=np.int32)


def draw_activations(rng, shape, bits):
    x = rng.integers(0, 1 << bits, shape, dtype=np.uint8)
    x[rng.random(shape) < 0.1] = (1 << bits) - 1
    return x


def wanted_sums(weight, bias, x_zero, window, x):
    """Return the sums of the reference, whatever the rank of the activations."""
    prepared = reference.prepare(weight, bias, x_zero, window)
    if window is None and len(x) == 0:
        return np.zeros((0, len(bias)), np.int32)
    if window is None:
        return reference.sums(prepared, x[None, :, None, :])[0, :, 0]
    return reference.sums(prepared, x)


def fitting_size(size, taps, window):
    """Make an image large enough for the dilated kernel."""
    top, left, bottom, right = window.pads
    return tuple(
        max(length, (tap - 1) * dilation + 1 - before - after, 1)
        for length, tap, dilation, before, after in zip(
            size, taps, window.dilations, (top, left), (bottom, right), strict=True
        )
    )
