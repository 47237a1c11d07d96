r"""Train a block so that its output is the float network's.

The loss is ``sum (y' - y)^2 / sum y^2`` over a few batches at a time, y' from what the quantized prefix of
the network gives and y from the float network (BRECQ, Li et al. 2021, arXiv 2102.05426, with the identity in
place of the Fisher information, as in QDrop, Wei et al. 2022, arXiv 2203.05740). Adam, with a rate that falls
along half a cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgq.reconstruct.module import Block, Place, Trained
from fgq.refine.pieces import Values

SCALE_STEPS = 300
CODE_STEPS = 600
"""Steps of a block: with codes as they are, and with all that can be trained."""

TOGETHER = 8
"""Samples of a step, at least."""

POSITION_RATE = 2e-3
SHIFT_RATE = 1e-3
"""Adam's rates at first: of positions, in units of a code, and of what is measured by its own size."""


class Example(NamedTuple):
    """What a block reads of a batch, and what it should give.

    Parameters
    ----------
    values : dict of str to ndarray
    wanted : ndarray of float32
    """

    values: Values
    wanted: NDArray[np.float32]


def relative_error(block: Block, constants: Mapping[Place, Tensor], examples: Sequence[Example]) -> float:
    """Return ``sum (y' - y)^2 / sum y^2``.

    Parameters
    ----------
    block : Block
    constants : mapping of (onnx_ir.Node, int) to Tensor
        What it reads for its weights and vectors.
    examples : sequence of Example
    """
    noise = power = 0.0
    with torch.no_grad():
        for example in examples:
            noise += float(_squared(block, constants, example))
            power += float(np.sum(np.square(example.wanted, dtype=np.float64)))
    return noise / power if power else noise


def train(
    block: Block,
    trained: Trained,
    examples: Sequence[Example],
    steps: int,
    progress: Callable[[float], None],
    *,
    keep_codes: bool,
) -> bool:
    """Lower the error of a block's output by its weights and vectors.

    Parameters
    ----------
    block : Block
    trained : Trained
        Its weights and vectors, changed in place.
    examples : sequence of Example
    steps : int
    progress : callable
        Called with the share of the work that is done.
    keep_codes : bool
        Whether to train scales and vectors alone.

    Returns
    -------
    bool
        Whether all is finite still; some functions have gradients that are not.
    """
    positions = [weight.position for weight in trained.weights.values()]
    for position in positions:
        position.requires_grad_(not keep_codes)
    shifts = [
        shift for weight in trained.weights.values() for shift in (weight.alpha_shift, weight.row_shift)
    ]
    shifts += [vector.shift for vector in trained.vectors.values()]
    adam = torch.optim.Adam(
        [{"params": positions, "lr": POSITION_RATE}, {"params": shifts, "lr": SHIFT_RATE}], betas=(0.9, 0.99)
    )
    groups = _groups(examples)
    power = sum(float(np.sum(np.square(example.wanted, dtype=np.float64))) for example in examples)
    unit = power / len(groups) or 1.0
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    rng = np.random.default_rng(0)
    order: list[int] = []
    for step in range(steps):
        progress(step / steps)
        order = order or rng.permutation(len(groups)).tolist()
        constants = block.constants()
        errors = [_squared(block, constants, examples[place]) for place in groups[order.pop()]]
        adam.zero_grad()
        (sum(errors, torch.zeros(())) / unit).backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
        if not keep_codes:
            for weight in trained.weights.values():
                weight.keep_in_range()
    return all(bool(torch.isfinite(parameter).all()) for parameter in (*positions, *shifts))


def _squared(block: Block, constants: Mapping[Place, Tensor], example: Example) -> Tensor:
    return torch.sum((block(example.values, constants) - torch.from_numpy(np.asarray(example.wanted))) ** 2)


def _groups(examples: Sequence[Example]) -> list[list[int]]:
    """Gather batches into steps of some samples each."""
    groups: list[list[int]] = [[]]
    samples = 0
    for place, example in enumerate(examples):
        if samples >= TOGETHER:
            groups.append([])
            samples = 0
        groups[-1].append(place)
        samples += len(example.wanted)
    return groups
