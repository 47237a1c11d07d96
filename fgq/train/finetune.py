"""`fgq finetune`: a person's module and data, from float or from a conversion, to a converted file."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from fgq.errors import ConfigError
from fgq.onnx_file import first_line
from fgq.scheme import ActivationScheme, WeightScheme
from fgq.train.export import export
from fgq.train.prepare import INT8_ACTIVATIONS, calibrate, load_converted, prepare
from fgq.train.quantizer import Ranges
from fgq.train.trainer import Data, Samples, Schedule, accuracy, train

_CALIBRATION = 512
_BATCH = 64


class Finetuned(NamedTuple):
    """What fine-tuning gave.

    Parameters
    ----------
    float_accuracy, start_accuracy, accuracy : float
        Shares of the validation data, 0 to 1: of the float network, of the quantized one before and after.
    left_float : list of str
        Layers whose operator the file computes in float.
    """

    float_accuracy: float
    start_accuracy: float
    accuracy: float
    left_float: list[str]


def load_function(place: str) -> Callable[[], Any]:
    """Import a function by ``package.module:function``.

    Raises
    ------
    ConfigError
        If there is no such function.
    """
    name, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{place}: cannot be imported ({first_line(error)}), wanted module:function"
        ) from None
    if not callable(found):
        raise ConfigError(f"{place}: found a {type(found).__name__}, wanted a function")
    return found  # type: ignore[no-any-return]


def finetune(
    module: nn.Module,
    data: Data,
    output: str | os.PathLike[str],
    *,
    scheme: WeightScheme,
    schedule: Schedule,
    folder: Path,
    activations: ActivationScheme | None = INT8_ACTIVATIONS,
    ranges: Ranges = Ranges.STATISTICAL,
    start: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Finetuned:
    """Quantize a float module, train it with the float one for a teacher, and write the converted model.

    Parameters
    ----------
    module : torch.nn.Module
        The trained float network: one input, one logit per class.
    data : Data
    output : path-like
        The .onnx file.
    scheme, activations, ranges
        As for `fgq.train.prepare`.
    schedule : Schedule
    folder : Path
        For checkpoints and metrics.
    start : path-like, optional
        A conversion of the same network to take codes and biases from.
    resume, tensorboard, progress
        As for `fgq.train.trainer.train`.

    Raises
    ------
    FgqError
        If the module, the data or an option cannot be used.
    """
    teacher = module.eval()
    count = min(_CALIBRATION, len(data.train))  # type: ignore[arg-type]
    batches = list(_inputs(data.train, count))
    # An example of two: torch.export takes a 1 for a constant.
    example = (_inputs_of(data.validation, 2),)
    student = prepare(module, scheme, example, activations=activations, ranges=ranges)
    calibrate(student, batches)
    if start is not None:
        load_converted(student, start)
    float_accuracy = accuracy(teacher, data.validation)
    before = accuracy(student.eval(), data.validation)
    train(
        student,
        data,
        schedule,
        folder,
        teacher=teacher,
        resume=resume,
        tensorboard=tensorboard,
        progress=progress,
    )
    after = accuracy(student, data.validation)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    left: list[str] = []
    if not distributed or torch.distributed.get_rank() == 0:
        left = export(student, output, example)
    return Finetuned(float_accuracy, before, after, left)


@contextmanager
def processes() -> Iterator[bool]:
    """Join the group of processes that ``torchrun`` started, if it did; True in the one that reports."""
    if "TORCHELASTIC_RUN_ID" not in os.environ and "WORLD_SIZE" not in os.environ:
        yield True
        return
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield torch.distributed.get_rank() == 0
    finally:
        torch.distributed.destroy_process_group()


def _inputs(samples: Samples, count: int) -> Iterator[tuple[Tensor, ...]]:
    for begin in range(0, count, _BATCH):
        rows = range(begin, min(count, begin + _BATCH))
        yield (default_collate([samples[row][0] for row in rows]),)


def _inputs_of(samples: Samples, count: int) -> Tensor:
    first: Tensor = default_collate([samples[0][0]] * count)
    return first
