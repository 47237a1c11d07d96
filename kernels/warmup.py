"""Compile kernels ahead of their first use: run a small layer, and a small operator, of each kind once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels.operators.activations import QuantizeLinear
from fgq.kernels.operators.concat import Concat
from fgq.kernels.operators.dynamic import NUMBERS_BYTES, Rows, bind_multiply, bind_quantize
from fgq.kernels.operators.elementwise import Add, Multiply
from fgq.kernels.operators.gelu import Gelu
from fgq.kernels.operators.global_average import GlobalAveragePool
from fgq.kernels.operators.layer_norm import LayerNorm
from fgq.kernels.operators.lookup import Lookup
from fgq.kernels.operators.pooling import AveragePool, MaxPool
from fgq.kernels.operators.softmax import Softmax
from fgq.kernels.operators.transpose import Transpose
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
    """Compile what networks with layers of these group sizes run on this machine.

    What is cached on disk is only loaded.

    Parameters
    ----------
    group_sizes : sequence of int
        Group sizes N.
    every_tier : bool
        Whether to compile layers for the instruction sets, too, that this machine has but would not choose.
    progress : callable, optional
        Called with the number of layers and operators done, and of all.

    Returns
    -------
    int
        How many layers and operators were run.

    Raises
    ------
    KernelError
        If a group size is less than 1.
    """
    if min(group_sizes, default=1) < 1:
        raise KernelError(f"group size: found {min(group_sizes)}, wanted at least 1")
    layers = [partial(layer, x) for layer, x in _layers(group_sizes, every_tier)]
    calls: list[Callable[[], object]] = [*_operators(), *layers]
    for done, call in enumerate(calls):
        if progress is not None:
            progress(done, len(calls))
        call()
    if progress is not None:
        progress(len(calls), len(calls))
    return len(calls)


def _operators() -> Iterator[Callable[[], object]]:
    """List operators that between them use all the code that stands between layers, each bound to arrays."""
    x, y, pooled = (np.zeros(shape, np.uint8) for shape in ((1, 3, 3, 5), (1, 3, 3, 5), (1, 1, 1, 5)))
    images, window = np.zeros((1, 5, 3, 3), np.float32), Window()
    for image in (False, True):
        yield partial(QuantizeLinear(y, 1.0, 0, image=image), images if image else images.reshape(y.shape))
    yield Transpose(x.reshape(1, 9, 5), y.reshape(1, 5, 9))
    for table in (np.arange(256, dtype=np.uint8), np.zeros(256, np.uint8)):
        yield Lookup(x, y, table)
        yield Concat([x], y, 0, [table])
    for operation, fused in product((Add, Multiply), (True, False)):
        yield operation(x, x, y, scales=(1.0, 1.0, 1.0), zeros=(0, 0, 0), fused=fused)
    yield MaxPool(x, y, (1, 1), window)
    yield AveragePool(x, y, (1, 1), window, x_scale=1.0, x_zero=0, y_scale=1.0, y_zero=0)
    yield GlobalAveragePool(x, pooled, x_scale=1.0, x_zero=0, y_scale=1.0, y_zero=0)
    rows, weight = np.zeros((2, 16), np.float32), np.zeros(16, np.float32)
    made, integers = np.zeros((2, 16), np.float32), np.zeros((2, 16), np.uint8)
    yield Softmax(rows, made)
    yield LayerNorm(rows, made, weight, weight, 1e-5)
    for tanh in (False, True):
        yield Gelu(rows, made, tanh=tanh)
        yield Gelu(rows, integers, tanh=tanh)
    memory = np.zeros((2, 16 + NUMBERS_BYTES), np.uint8)
    for by_row in (False, True):
        yield bind_quantize(rows, memory, by_row=by_row, threads=1)
    yield _dynamic_product(memory)


def _dynamic_product(memory: NDArray[np.uint8]) -> Callable[[], None]:
    rows = Rows.within(memory)
    ones = np.ones((8, rows.activations.shape[1]), np.int8)
    layer = Layer(Weight((Plane(ones, np.ones((8, 1), np.uint8)),), np.zeros(ones.shape[1], np.int32)))
    scratch = np.zeros(layer.scratch_bytes(rows.activations), np.uint8)
    real = np.zeros(8, np.float32)
    out = np.zeros((len(rows.activations), 8), np.float32)
    return bind_multiply(layer, np.zeros(8, np.int32), real, real, rows, None, out, scratch, 1)


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
