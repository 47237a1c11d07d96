"""Compile kernels ahead of their first use: run a small layer of each kind once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels.operators.activations import dynamic_quantization, quantize_activations
from fgq.kernels.products.dispatch import FEW_ROWS, Memory, Problem, Wish, select_kernel
from fgq.kernels.products.layer import MANY_ROWS, Layer, Wishes
from fgq.kernels.products.weights import Plane, Weight
from fgq.kernels.simd.isa import InstructionSet, available
from fgq.kernels.window import Window

GROUP_SIZES = (4, 8, 16, 32, 64)
"""Those that code is compiled for ahead of time."""

_REDUCTION = 256
_OUTPUTS = (32, 256)
"""Few and many output channels: some kernels have code of their own for each."""


def warm_up(
    group_sizes: Sequence[int] = GROUP_SIZES,
    *,
    every_tier: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Compile what layers of these group sizes run on this machine; what is cached on disk is only loaded.

    Parameters
    ----------
    group_sizes : sequence of int
        Group sizes N.
    every_tier : bool
        Whether to compile for the instruction sets, too, that this machine has but would not choose.
    progress : callable, optional
        Called with the number of layers done and of all.

    Returns
    -------
    int
        How many layers were run.

    Raises
    ------
    KernelError
        If a group size is less than 1.
    """
    if min(group_sizes, default=1) < 1:
        raise KernelError(f"group size: found {min(group_sizes)}, wanted at least 1")
    layers = list(_layers(group_sizes, every_tier))
    for done, (layer, x) in enumerate(layers):
        if progress is not None:
            progress(done, len(layers))
        layer(x)
    real = np.linspace(-1, 1, 100, dtype=np.float32)
    quantize_activations(real, *dynamic_quantization(real))
    if progress is not None:
        progress(len(layers), len(layers))
    return len(layers)


def _layers(group_sizes: Sequence[int], every_tier: bool) -> Iterator[tuple[Layer, NDArray[np.uint8]]]:
    """List layers that between them use all the code, each with activations to run it on."""
    for wish, tier in _wishes(every_tier):
        for size, outputs, bits in product(group_sizes, _OUTPUTS, (8, 4)):
            weight = _weight(outputs, size)
            for memory in (Memory.FAST, Memory.COMPACT):
                if memory is Memory.COMPACT and (wish is Wish.MULTIPLICATION_FREE or size % 4):
                    continue
                wishes = Wishes(kernel=wish, tier=tier, memory=memory)
                for rows in (*range(1, FEW_ROWS + 1), MANY_ROWS):
                    layer = Layer(weight, activation_bits=bits, wishes=wishes)
                    yield layer, np.zeros((rows, _REDUCTION), np.uint8)
    for tier in [isa.name for isa in available()] if every_tier else [None]:
        weight = Weight.single(
            np.ones((8, 3, 3, 1), np.int8), np.ones((8, 3, 3, 1), np.uint8), np.zeros(1, np.int32)
        )
        try:
            yield (
                Layer(weight, window=Window(groups=8), wishes=Wishes(tier=tier)),
                np.zeros((1, 5, 5, 8), np.uint8),
            )
        except KernelError:
            continue  # no such kernel for this set


def _wishes(every_tier: bool) -> list[tuple[Wish, str | None]]:
    tiers: list[InstructionSet | None] = [*available()] if every_tier else [None]
    found = []
    for wish, isa in product((Wish.DOT, Wish.MULTIPLICATION_FREE), tiers):
        name = None if isa is None else isa.name
        try:
            for rows in (1, MANY_ROWS):
                select_kernel(Problem(largest_code=1, rows=rows), available(), wish, name)
        except KernelError:
            continue  # no such kernel for this set
        found.append((wish, name))
    return found


def _weight(outputs: int, group_size: int) -> Weight:
    group = (np.arange(_REDUCTION) // group_size).astype(np.int32)
    codes = np.ones((outputs, _REDUCTION), np.int8)
    alpha = np.ones((outputs, int(group[-1]) + 1), np.uint8)
    return Weight((Plane(codes, alpha),), group)
