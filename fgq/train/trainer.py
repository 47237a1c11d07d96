"""The training loop: schedule, distillation, averaged weights, checkpoints that resume, several processes.

The batches follow from the seed and the number of the step alone, and so does the learning rate: a run that
was killed goes on from its last checkpoint as if it had not been.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fgq.errors import ConfigError, DataError, FgqError
from fgq.train import fused
from fgq.train.batches import Batch, Data, Samples, batch_of, rows_of_step
from fgq.train.checkpoint import restore as _restore
from fgq.train.checkpoint import save as _save
from fgq.train.objective import Features, Logits, Objective
from fgq.train.prepare import quantized_layers

__all__ = ["Data", "Samples", "Schedule", "TrainingError", "accuracy", "rows_of_step", "score", "train"]

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.csv"
_COLUMNS = ("step", "loss", "rate", "strength")


class TrainingError(FgqError):
    """Training cannot go on."""


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
    betas : tuple of float
        AdamW's decays of the means of gradients and of their squares.
    distillation, temperature : float
        As for `fgq.train.objective.Logits`.
    ema : float
        Decay of the averaged weights, 0 for none.
    gradual : int
        Steps over which weights move from float to quantized, linearly.
    seed : int
    checkpoint_every : int
        Steps between checkpoints.
    bfloat16 : bool
        Whether to compute under bfloat16 autocast, the teacher too.
    match : tuple of str
        Modules, by names with ``*``, whose results shall be the teacher's: their mean relative squared
        distance (`fgq.train.objective.Features`) is added to the loss, times `match_weight`.
    match_weight : float
    compile : bool
        Whether to compile what quantization does to single values (`fgq.train.fused`).

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
    betas: tuple[float, float] = (0.9, 0.999)
    distillation: float = 0.7
    temperature: float = 2.0
    ema: float = 0.99
    gradual: int = 0
    seed: int = 0
    checkpoint_every: int = 100
    bfloat16: bool = False
    match: tuple[str, ...] = ()
    match_weight: float = 1.0
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: found {getattr(self, name)}, wanted at least 1")
        for name in ("warm_up", "gradual", "weight_decay", "match_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: found {getattr(self, name)}, wanted at least 0")
        for name in ("rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: found {getattr(self, name)}, wanted a positive number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas: found {self.betas}, wanted both at least 0 and below 1")
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


def train(
    student: nn.Module,
    data: Data,
    schedule: Schedule,
    folder: Path,
    *,
    teacher: nn.Module | None = None,
    objective: Objective | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> nn.Module:
    """Train a module and return it, in evaluation mode, with its averaged weights.

    Under `torch.distributed` every process trains on its share of each batch.

    Parameters
    ----------
    student : torch.nn.Module
        Trained in place.
    data : Data
    schedule : Schedule
    folder : Path
        Gets ``checkpoint.pt`` and ``metrics.csv``.
    teacher : torch.nn.Module, optional
        The float network to distil from.
    objective : Objective, optional
        Otherwise `fgq.train.objective.Logits` as the schedule says.
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
        If a checkpoint is missing, damaged or of another schedule or network, or the batch cannot be shared
        evenly.
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
        [parameter for parameter in student.parameters() if parameter.requires_grad],
        lr=schedule.rate,
        weight_decay=schedule.weight_decay,
        betas=schedule.betas,
        fused=True,
    )
    first = _restore(checkpoint, schedule, student, average, optimizer) if resume else 0
    runner: nn.Module = DistributedDataParallel(student) if world > 1 else student
    device = next(student.parameters()).device
    if objective is None:
        objective = Logits(schedule.distillation, schedule.temperature)
    features = None
    if teacher is not None:
        teacher.eval()
        features = Features(student, teacher, schedule.match)
    student.train()
    reports = closing(_Metrics(folder, first, tensorboard)) if rank == 0 else nullcontext()
    with fused.compiled(schedule.compile), reports as metrics:
        for step in range(first, schedule.steps):
            strength = schedule.strength_at(step)
            for layer in quantized_layers(student).values():
                layer.strength = strength
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(step)
            rows = rows_of_step(count, schedule.batch, schedule.seed, step, data.lengths)[rank::world]
            batch = batch_of(data, data.train, rows, student).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=schedule.bfloat16):
                loss, distance = _losses(runner, teacher, features, objective, batch)
                loss = loss + schedule.match_weight * distance
            if not math.isfinite(loss.item()):
                raise TrainingError(_diverged(student, batch.inputs, step, checkpoint))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if schedule.ema:
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
def score(
    module: nn.Module, data: Data, objective: Objective, teacher: nn.Module | None = None, batch: int = 256
) -> float:
    """Return the mean score of a module on the validation data.

    Raises
    ------
    DataError
        If there are no samples, or they lack what the objective needs.
    """
    count = _length(data.validation, "validation data")
    device = next(module.parameters()).device
    total = 0.0
    for start in range(0, count, batch):
        rows = range(start, min(count, start + batch))
        inputs, labels = batch_of(data, data.validation, rows, module).to(device)
        wanted = None if teacher is None else teacher(*inputs)
        total += float(objective.scores(module(*inputs), labels, wanted).sum())
    return total / count


def accuracy(module: nn.Module, samples: Samples, batch: int = 256) -> float:
    """Return the share of samples, in 0..1, whose largest logit is their label's.

    Raises
    ------
    DataError
        If there are no samples.
    """
    return score(module, Data(samples, samples), Logits(0.0, 1.0), batch=batch)


def _place() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _length(samples: Samples, what: str) -> int:
    count = len(samples)  # type: ignore[arg-type]
    if not count:
        raise DataError(f"{what}: found no samples, wanted at least one")
    return count


def _losses(
    runner: nn.Module,
    teacher: nn.Module | None,
    features: Features | None,
    objective: Objective,
    batch: Batch,
) -> tuple[Tensor, Tensor | float]:
    """Return the objective's loss, and the distance of the features."""
    if teacher is None or features is None:
        return objective.loss(runner(*batch.inputs).float(), batch.labels, None), 0.0
    with features.watched():
        with torch.no_grad():
            wanted = teacher(*batch.inputs).float()
        found = runner(*batch.inputs).float()
    distance = features.distance() if features.names else 0.0
    return objective.loss(found, batch.labels, wanted), distance


def _diverged(student: nn.Module, inputs: tuple[Tensor, ...], step: int, checkpoint: Path) -> str:
    """Say where a loss that is not finite comes from: the first module whose result is not."""
    bad: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                bad.append(name)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in student.named_modules() if name]
    with torch.no_grad():
        student(*inputs)
    for handle in handles:
        handle.remove()
    kept = f"the last checkpoint is {checkpoint}" if checkpoint.is_file() else "no checkpoint was written yet"
    where = bad[0] if bad else "the loss alone"
    return (
        f"step {step + 1}: found a loss that is not finite, first in {where}, wanted a finite one; {kept}; "
        "lower the rate"
    )


def _is_before(row: Sequence[str], first: int) -> bool:
    """Tell whether a row is of a step up to the first one that follows; a damaged one is of none."""
    step = row[0] if len(row) == len(_COLUMNS) else ""
    return step.isascii() and step.isdigit() and len(step) < 20 and int(step) <= first


class _Metrics:
    """One row a step in ``metrics.csv``; rows after the checkpoint that a run resumes from are dropped."""

    def __init__(self, folder: Path, first: int, tensorboard: bool) -> None:
        path = folder / METRICS
        kept: Sequence[Sequence[str]] = []
        if first and path.is_file():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                with suppress(csv.Error):
                    kept = [row for row in csv.reader(file) if _is_before(row, first)]
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
