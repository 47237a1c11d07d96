"""Matrix product with 8-bit weights on any processor.

Each activation multiplies a row of weights, which lie as int8 [K, M], and is added to the sums of a block
of output channels; four activations share one pass over the sums. LLVM turns the loop over channels into
vector instructions.

Overflow: the int32 sums wrap modulo 2**32, harmlessly, since the final value fits
(:mod:`fgq.kernels.products.weights`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.kernels._jit import jit
from fgq.kernels.products.driver import Engine, Plan
from fgq.kernels.products.weights import Weight
from fgq.kernels.simd.isa import InstructionSet, index_of

_PANEL_BYTES = 1 << 18
"""Size of a panel of activations: a quarter of a small second-level cache."""

_OUTPUTS = 512
"""Output channels in a block: their sums stay in the first-level cache."""


def prepare(matrices: list[Weight], isa: InstructionSet) -> Engine:
    """Unpack the weights.

    Parameters
    ----------
    matrices : list of Weight
        The conv groups' weights, [M / groups, K] each.
    isa : InstructionSet
        The portable one.
    """
    weights = np.stack([np.ascontiguousarray(matrix.int8().T) for matrix in matrices])
    reduction = weights.shape[1]

    def plan(rows: int, outputs: int) -> Plan:
        step = min(rows, max(32, _PANEL_BYTES // reduction))
        return Plan(rows_step=step, outputs_step=min(outputs, _OUTPUTS), pitch=reduction, direct=True)

    return Engine(block=_multiply, tier=index_of(isa), weights=(weights,), plan=plan)


@jit
def _multiply(
    weights: Any,
    group: int,
    panel: NDArray[np.uint8],
    rows: int,
    first: int,
    outputs: int,
    sums: NDArray[np.int32],
    work: NDArray[np.uint8],
) -> None:
    matrix = weights[0][group]
    reduction = matrix.shape[0]
    fours = reduction - reduction % 4
    for r in range(rows):
        acc = sums[r, :outputs]
        for m in range(outputs):
            acc[m] = 0
        for k in range(0, fours, 4):
            xa, xb, xc, xd = (
                np.int32(panel[r, k]),
                np.int32(panel[r, k + 1]),
                np.int32(panel[r, k + 2]),
                np.int32(panel[r, k + 3]),
            )
            wa, wb, wc, wd = (
                matrix[k, first : first + outputs],
                matrix[k + 1, first : first + outputs],
                matrix[k + 2, first : first + outputs],
                matrix[k + 3, first : first + outputs],
            )
            for m in range(outputs):
                acc[m] += (xa * wa[m] + xb * wb[m]) + (xc * wc[m] + xd * wd[m])
        for k in range(fours, reduction):
            xa, wa = np.int32(panel[r, k]), matrix[k, first : first + outputs]
            for m in range(outputs):
                acc[m] += xa * wa[m]
