"""The training loop: schedule, distillation, averaged weights, checkpoints that resume, several processes.

The batches follow from the seed and the number of the step alone, and so does the learning rate: a run that
was killed goes on from its last checkpoint as if it had not been.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, default_collate

from fgq.errors import ConfigError, DataError, FgqError
from fgq.train.prepare import quantized_layers

Samples = Dataset[tuple[Tensor, int]]
"""A map-style data set of inputs and labels."""

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"
_COLUMNS = ("step", "loss", "rate", "strength")


class TrainingError(FgqError):
    """Training cannot go on."""


class Data(NamedTuple):
    """What a network is trained and judged on.

    Parameters
    ----------
    train, validation : Dataset
        Map-style, of pairs of an input and a label.
    """

    train: Samples
    validation: Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long and how to train.

    Parameters
    ----------
    steps, batch : int
        The number of steps, and the samples of one step over all processes.
    rate : float
        The peak learning rate of AdamW; linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter
        2017, "SGDR", equation 5).
    warm_up : int
        Steps of the rate's warm-up.
    weight_decay : float
    distillation : float
        The share of the teacher in the loss, 0 to 1: temperature**2 times the Kullback-Leibler divergence
        from its softened outputs (Hinton et al. 2015, arXiv 1503.02531, section 2); the rest is the cross
        entropy of the labels.
    temperature : float
    ema : float
        Decay of the averaged weights, 0 for none.
    gradual : int
        Steps over which weights move from float to quantized, linearly.
    seed : int
    checkpoint_every : int
        Steps between checkpoints.
    bfloat16 : bool
        Whether to compute under bfloat16 autocast.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    steps: int = 1000
    batch: int = 128
    rate: float = 2e-4
    warm_up: int = 50
    weight_decay: float = 0.0
    distillation: float = 0.7
    temperature: float = 2.0
    ema: float = 0.99
    gradual: int = 0
    seed: int = 0
    checkpoint_every: int = 100
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: found {getattr(self, name)}, wanted at least 1")
        for name in ("warm_up", "gradual", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: found {getattr(self, name)}, wanted at least 0")
        for name in ("rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: found {getattr(self, name)}, wanted a positive number")
        if not 0 <= self.distillation <= 1:
            raise ConfigError(f"distillation: found {self.distillation}, wanted 0 to 1")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema: found {self.ema}, wanted at least 0 and below 1")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return self.rate * min(1.0, (step + 1) / max(1, self.warm_up)) * 0.5 * (
            1 + math.cos(math.pi * step / self.steps)
        )  # fmt: skip

    def strength_at(self, step: int) -> float:
        """Return how far the weights of a step are quantized, 0 to 1."""
        return 1.0 if self.gradual == 0 else min(1.0, step / self.gradual)


def rows_of_step(count: int, batch: int, seed: int, step: int) -> list[int]:
    """Return the samples of a step: consecutive ones of an endless series of seeded permutations.

    Parameters
    ----------
    count : int
        The size of the data set.
    batch, seed, step : int
    """
    rows: list[int] = []
    position = step * batch
    while len(rows) < batch:
        epoch, start = divmod(position, count)
        generator = torch.Generator().manual_seed((seed << 32) + epoch)
        taken = torch.randperm(count, generator=generator)[start : start + batch - len(rows)].tolist()
        rows += taken
        position += len(taken)
    return rows


def train(
    student: nn.Module,
    data: Data,
    schedule: Schedule,
    folder: Path,
    *,
    teacher: nn.Module | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> nn.Module:
    """Train a module and return it, in evaluation mode, with its averaged weights.

    Under `torch.distributed` every process trains on its share of each batch.

    Parameters
    ----------
    student : torch.nn.Module
        Gives one logit per class; trained in place.
    data : Data
    schedule : Schedule
    folder : Path
        Gets ``checkpoint.pt`` and ``metrics.csv``.
    teacher : torch.nn.Module, optional
        The float network to distil from.
    resume : bool
        Go on from the checkpoint in `folder`.
    tensorboard : bool
        Also write metrics for TensorBoard into `folder`.
    progress : callable, optional
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    DataError
        If there are no data, or a label is out of range.
    ConfigError
        If a checkpoint is missing or of another schedule, or the batch cannot be shared evenly.
    TrainingError
        If the loss becomes NaN or infinite.
    """
    rank, world = _place()
    count = _length(data.train, "training data")
    if schedule.batch % world:
        raise ConfigError(f"batch: found {schedule.batch} for {world} processes, wanted a multiple of them")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / CHECKPOINT
    mix = get_ema_multi_avg_fn(schedule.ema)  # type: ignore[no-untyped-call]
    average = AveragedModel(student, multi_avg_fn=mix)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=schedule.rate, weight_decay=schedule.weight_decay, foreach=True
    )
    first = _restore(checkpoint, schedule, student, average, optimizer) if resume else 0
    runner: nn.Module = DistributedDataParallel(student) if world > 1 else student
    device = next(student.parameters()).device
    if teacher is not None:
        teacher.eval()
    student.train()
    with closing(_Metrics(folder, first, tensorboard)) if rank == 0 else nullcontext() as metrics:
        for step in range(first, schedule.steps):
            strength = schedule.strength_at(step)
            for layer in quantized_layers(student).values():
                layer.strength = strength
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(step)
            rows = rows_of_step(count, schedule.batch, schedule.seed, step)[rank::world]
            images, labels = (part.to(device) for part in default_collate([data.train[row] for row in rows]))
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16):
                logits = runner(images)
            _check_labels(labels, logits)
            loss = _loss(logits.float(), labels, images, teacher, schedule)
            if not math.isfinite(loss.item()):
                raise TrainingError(_diverged(student, images, step, checkpoint))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            average.update_parameters(student)
            done = step + 1
            if metrics is not None:
                metrics.write(done, loss.item(), schedule.rate_at(step), strength)
                if done % schedule.checkpoint_every == 0 or done == schedule.steps:
                    _save(checkpoint, schedule, student, average, optimizer, done)
            if progress is not None:
                progress("train", done, schedule.steps)
    for layer in quantized_layers(student).values():
        layer.strength = 1.0
    if schedule.ema:
        student.load_state_dict(average.module.state_dict())
    return student.eval()


@torch.no_grad()
def accuracy(module: nn.Module, samples: Samples, batch: int = 256) -> float:
    """Return the share of samples, in 0..1, whose largest logit is their label's.

    Raises
    ------
    DataError
        If there are no samples.
    """
    count = _length(samples, "validation data")
    right = 0
    for start in range(0, count, batch):
        images, labels = default_collate([samples[row] for row in range(start, min(count, start + batch))])
        right += int((module(images).argmax(1) == labels).sum())
    return right / count


def _place() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _length(samples: Samples, what: str) -> int:
    count = len(samples)  # type: ignore[arg-type]
    if not count:
        raise DataError(f"{what}: found no samples, wanted at least one")
    return count


def _check_labels(labels: Tensor, logits: Tensor) -> None:
    classes = logits.shape[-1]
    bad = labels[(labels < 0) | (labels >= classes)]
    if bad.numel():
        raise DataError(f"label: found {int(bad[0])}, wanted 0..{classes - 1}, one of the model's classes")


def _loss(
    logits: Tensor, labels: Tensor, images: Tensor, teacher: nn.Module | None, schedule: Schedule
) -> Tensor:
    share = 0.0 if teacher is None else schedule.distillation
    loss = (1 - share) * functional.cross_entropy(logits, labels)
    if teacher is None or share == 0.0:
        return loss
    T = schedule.temperature
    with torch.no_grad():
        wanted = functional.log_softmax(teacher(images).float() / T, -1)
    found = functional.log_softmax(logits / T, -1)
    divergence = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
    return loss + share * T**2 * divergence


def _diverged(student: nn.Module, images: Tensor, step: int, checkpoint: Path) -> str:
    """Say where a loss that is not finite comes from: the first module whose result is not."""
    bad: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                bad.append(name)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in student.named_modules() if name]
    with torch.no_grad():
        student(images)
    for handle in handles:
        handle.remove()
    kept = f"the last checkpoint is {checkpoint}" if checkpoint.is_file() else "no checkpoint was written yet"
    where = bad[0] if bad else "the loss alone"
    return (
        f"step {step + 1}: found a loss that is not finite, first in {where}, wanted a finite one; {kept}; "
        "lower the rate"
    )


def _save(
    path: Path,
    schedule: Schedule,
    student: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    beside = path.with_suffix(".tmp")
    state = {
        "schedule": asdict(schedule),
        "step": step,
        "student": student.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, beside)
    os.replace(beside, path)


def _restore(
    path: Path,
    schedule: Schedule,
    student: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> int:
    if not path.is_file():
        raise ConfigError(f"{path}: found no checkpoint, wanted one to go on from; omit --resume")
    state = torch.load(path, weights_only=True)
    found, wanted = state["schedule"], asdict(schedule)
    differing = [name for name in wanted if name != "checkpoint_every" and found.get(name) != wanted[name]]
    if differing:
        name = differing[0]
        raise ConfigError(f"{path}: found a run with {name} {found.get(name)}, wanted {wanted[name]}")
    student.load_state_dict(state["student"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


class _Metrics:
    """One row a step in ``metrics.csv``; rows after the checkpoint that a run resumes from are dropped."""

    def __init__(self, folder: Path, first: int, tensorboard: bool) -> None:
        path = folder / METRICS
        kept: Sequence[Sequence[str]] = []
        if first and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.reader(file) if row[0].isdigit() and int(row[0]) <= first]
        self._file = path.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerows([_COLUMNS, *kept])
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ConfigError(
                    "--tensorboard: the package is not installed; pip install 'fgq[train]'"
                ) from None
            self._board = SummaryWriter(str(folder), purge_step=first or None)

    def write(self, step: int, *values: float) -> None:
        """Add the values of one step."""
        self._rows.writerow([step, *(f"{value:.9g}" for value in values)])
        self._file.flush()
        if self._board is not None:
            for name, value in zip(_COLUMNS[1:], values, strict=True):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()
