"""Data sets for training, their batches, and which samples each step takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from fgq.errors import DataError

Samples = Dataset[Any]
"""A map-style data set of pairs of an input and a label, or of whatever the data's `collate` takes."""


class Data(NamedTuple):
    """What a network is trained and judged on.

    Parameters
    ----------
    train, validation : Dataset
        Map-style.
    collate : callable
        Makes a batch of a list of samples: a pair of inputs and labels. Inputs are a tensor, a sequence of
        tensors, or a mapping of the module's parameters to tensors; labels an int64 tensor, or None where
        the objective needs none.
    lengths : sequence of int, optional
        Of the training samples. Batches are then made of samples of about one length.
    """

    train: Samples
    validation: Samples
    collate: Callable[[list[Any]], Any] = default_collate
    lengths: Sequence[int] | None = None


class Batch(NamedTuple):
    """Some samples.

    Parameters
    ----------
    inputs : tuple of torch.Tensor
        In the order of the module's parameters.
    labels : torch.Tensor or None
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor | None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return Batch(tuple(tensor.to(device) for tensor in self.inputs), labels)


def batch_of(data: Data, samples: Samples, rows: Sequence[int], module: nn.Module) -> Batch:
    """Collate samples for a module.

    Raises
    ------
    DataError
        If the data's `collate` gives no pair, or inputs that the module does not take.
    """
    made = data.collate([samples[row] for row in rows])
    if not isinstance(made, Sequence) or len(made) != 2:
        raise DataError(f"batch: found a {type(made).__name__}, wanted a pair of inputs and labels")
    inputs, labels = made
    if isinstance(inputs, Mapping):
        try:
            inputs = inspect.signature(module.forward).bind(**inputs).args
        except TypeError as error:
            raise DataError(f"batch: {error}, wanted the parameters of the module's forward") from None
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    return Batch(tuple(inputs), labels)


def rows_of_step(
    count: int, batch: int, seed: int, step: int, lengths: Sequence[int] | None = None
) -> list[int]:
    """Return the samples of a step: consecutive ones of an endless series of seeded permutations.

    Parameters
    ----------
    count : int
        The size of the data set.
    batch, seed, step : int
    lengths : sequence of int, optional
        Of the samples. Within an epoch batches are then neighbours in the order of their lengths, taken in
        a seeded order; what does not fill a batch is left out.
    """
    if lengths is not None and count >= batch:
        epoch, number = divmod(step, count // batch)
        return _grouped(tuple(lengths), batch, seed, epoch)[number]
    rows: list[int] = []
    position = step * batch
    while len(rows) < batch:
        epoch, start = divmod(position, count)
        taken = torch.randperm(count, generator=_generator(seed, epoch))[start : start + batch - len(rows)]
        rows += taken.tolist()
        position += len(taken)
    return rows


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 32) + epoch)


@lru_cache(maxsize=1)
def _grouped(lengths: tuple[int, ...], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the batches of one epoch."""
    generator = _generator(seed, epoch)
    shuffled = torch.randperm(len(lengths), generator=generator)
    ordered = shuffled[torch.tensor(lengths)[shuffled].argsort(stable=True)]
    first = int(torch.randint(len(lengths) % batch + 1, (), generator=generator))
    batches = ordered[first : first + len(lengths) // batch * batch].reshape(-1, batch)
    order: list[list[int]] = batches[torch.randperm(len(batches), generator=generator)].tolist()
    return order
