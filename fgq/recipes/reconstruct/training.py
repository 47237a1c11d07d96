r"""Train a block so that its output is the float network's.

The loss is ``sum (y' - y)^2 / sum y^2`` over a few batches at a time, y' from what the quantized prefix of
the network gives and y from the float network (BRECQ, Li et al. 2021, arXiv 2102.05426, with the identity in
place of the Fisher information, as in QDrop, Wei et al. 2022, arXiv 2203.05740). Adam, with a rate that falls
along half a cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgq.recipes.moments import Float
from fgq.recipes.pieces import Values
from fgq.recipes.reconstruct.module import Block, Place, Trained

TOGETHER = 8
"""Samples of a step, at least."""


class Stage(NamedTuple):
    """A part of the training.

    Parameters
    ----------
    steps : int
    position_rate : float
        Adam's rate at first, of positions, in units of a code; 0 keeps codes as they are.
    shift_rate : float
        The same of what is measured by its own size.
    """

    steps: int
    position_rate: float
    shift_rate: float


SCALES = Stage(300, 0.0, 1e-3)
CODES = Stage(600, 2e-3, 1e-3)
"""Of a block alone: with codes as they are, then with all that can be trained."""

JOINT = Stage(600, 1e-2, 1e-3)
"""Of blocks together."""


class Example(NamedTuple):
    """What a block reads of a batch, and what it should give.

    Parameters
    ----------
    values : dict of str to ndarray
    wanted : sequence of ndarray of float32
        One for each output of the block.
    """

    values: Values
    wanted: Sequence[NDArray[np.float32]]


def block_errors(block: Block, constants: Mapping[Place, Tensor], examples: Sequence[Example]) -> Float:
    """Return ``sum (y' - y)^2`` of each sample and each output of a block.

    Parameters
    ----------
    block : Block
    constants : mapping of (onnx_ir.Node, int) to Tensor
        What it reads for its weights and vectors.
    examples : sequence of Example

    Returns
    -------
    ndarray of float64, shape (samples, outputs)
    """
    parts = [np.zeros((0, len(block.outputs)))]
    for example in examples:
        with torch.no_grad():
            found = [y.numpy() for y in block(example.values, constants)]
        parts.append(squared_errors(list(zip(found, example.wanted, strict=True))))
    return np.concatenate(parts)


def squared_errors(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Float:
    """Return ``sum (y' - y)^2`` of each sample of a batch.

    Parameters
    ----------
    pairs : sequence of (ndarray of float, ndarray of float)
        y' and y of each output, with samples along their first axes. Where these differ from output to
        output, the batch counts as one sample.

    Returns
    -------
    ndarray of float64, shape (samples, outputs)
    """
    errors = [np.square(np.atleast_1d(y - exact), dtype=np.float64) for y, exact in pairs]
    lengths = {len(each) for each in errors}
    samples = lengths.pop() if len(lengths) == 1 else 1
    return np.stack([each.reshape(samples, -1).sum(1) for each in errors], axis=1)


def is_worse(found: Float, before: Float) -> bool:
    """Tell whether errors of the same samples have risen by more than chance.

    What counts is the relative rise of each output's error, the mean over the outputs: the least error is
    often that of the last, which all others serve. The errors before are those that weights were chosen by,
    and so a little too small; by chance alone the mean moves by one standard error.

    Parameters
    ----------
    found, before : ndarray of float64, shape (samples, outputs)
    """
    total = before.sum(0)
    rise = ((found - before) / np.where(total > 0, total, 1.0)).mean(1)
    chance = float(np.std(rise, ddof=1) * np.sqrt(len(rise))) if len(rise) > 1 else 0.0
    return not float(rise.sum()) <= chance


def train(
    block: Block,
    trained: Trained,
    examples: Sequence[Example],
    stage: Stage,
    progress: Callable[[int], None],
) -> bool:
    """Lower the mean relative error of a block's outputs by its weights and vectors.

    Parameters
    ----------
    block : Block
    trained : Trained
        Its weights and vectors, changed in place.
    examples : sequence of Example
    stage : Stage
    progress : callable
        Called with the number of steps that are done.

    Returns
    -------
    bool
        Whether all is finite still; some functions have gradients that are not.
    """
    positions = [weight.position for weight in trained.weights.values()]
    for position in positions:
        position.requires_grad_(stage.position_rate > 0)
    shifts = [
        shift for weight in trained.weights.values() for shift in (weight.alpha_shift, weight.row_shift)
    ]
    shifts += [vector.shift for vector in trained.vectors.values()]
    adam = torch.optim.Adam(
        [{"params": positions, "lr": stage.position_rate}, {"params": shifts, "lr": stage.shift_rate}],
        betas=(0.9, 0.99),
    )
    groups, power = _groups(examples)
    units = torch.tensor(np.where(power > 0, power / len(groups), 1.0), dtype=torch.float32)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, stage.steps)
    rng = np.random.default_rng(0)
    order: list[int] = []
    for step in range(stage.steps):
        progress(step)
        order = order or rng.permutation(len(groups)).tolist()
        constants = block.constants()
        members = [examples[place] for place in groups[order.pop()]]
        errors = [_squared(block, constants, member) for member in members]
        adam.zero_grad()
        (torch.stack(errors).sum(0) / units).mean().backward()  # type: ignore[no-untyped-call]
        adam.step()
        schedule.step()
        if stage.position_rate > 0:
            for weight in trained.weights.values():
                weight.keep_in_range()
    return all(bool(torch.isfinite(parameter).all()) for parameter in (*positions, *shifts))


def _squared(block: Block, constants: Mapping[Place, Tensor], example: Example) -> Tensor:
    """Return the squared error of each output."""
    pairs = zip(block(example.values, constants), example.wanted, strict=True)
    return torch.stack([torch.sum((y - torch.from_numpy(np.asarray(exact))) ** 2) for y, exact in pairs])


def _powers(example: Example) -> Float:
    return np.array([np.sum(np.square(exact, dtype=np.float64)) for exact in example.wanted])


def _groups(examples: Sequence[Example]) -> tuple[list[list[int]], Float]:
    """Gather batches into steps of some samples each, and sum the power of each output over all."""
    groups: list[list[int]] = [[]]
    samples, power = 0, np.zeros(1)
    for place, example in enumerate(examples):
        if samples >= TOGETHER:
            groups.append([])
            samples = 0
        groups[-1].append(place)
        samples += len(example.wanted[0])
        power = power + _powers(example)
    return groups, power
