"""`fgq finetune`: a person's module and data, from float or from a conversion, to a converted file."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fgq.errors import ConfigError, DataError, first_line
from fgq.format import onnx_file
from fgq.plan.plan_file import Plan
from fgq.quantization.scheme import ActivationScheme, WeightScheme
from fgq.train.batches import Data, batch_of
from fgq.train.conversion import load_converted, plan_for
from fgq.train.export import export
from fgq.train.objective import Embeddings, Logits, Objective, Objectives
from fgq.train.prepare import INT8_ACTIVATIONS, calibrate, prepare, quantized_layers
from fgq.train.quantizer import Ranges
from fgq.train.scales import Scales
from fgq.train.trainer import Schedule, score, train

_CALIBRATION = 512
_BATCH = 64


class Finetuned(NamedTuple):
    """What fine-tuning gave.

    Parameters
    ----------
    measure : str
        What the scores are: ``top-1``, 0 to 1, or the mean ``cosine`` to the float network's vectors.
    float_score, start_score, score : float
        On the validation data: of the float network, of the quantized one before and after.
    left_float : list of str
        Layers whose operator the file computes in float.
    """

    measure: str
    float_score: float
    start_score: float
    score: float
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
    scales: Scales = Scales.REFITTED,
    plan: Plan | None = None,
    exclude: str | None = None,
    objective: Objective | None = None,
    start: str | os.PathLike[str] | None = None,
    start_float: str | os.PathLike[str] | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Finetuned:
    """Quantize a float module, train it with the float one for a teacher, and write the converted model.

    Parameters
    ----------
    module : torch.nn.Module
        The trained float network.
    data : Data
    output : path-like
        The .onnx file.
    scheme, activations, ranges, scales
        As for `fgq.train.prepare`.
    schedule : Schedule
    folder : Path
        For checkpoints and metrics.
    plan : Plan, optional
        The schemes of the layers.
    exclude : str, optional
        Layers to leave float: a regular expression that matches somewhere in the name.
    objective : Objective, optional
        Otherwise logits, as the schedule says.
    start, start_float : path-like, optional
        A conversion of the same network to take codes and biases from, and the float model that was
        converted or planned: `fgq.train.conversion`.
    resume, tensorboard, progress
        As for `fgq.train.trainer.train`.

    Raises
    ------
    FgqError
        If the module, the data or an option cannot be used.
    """
    teacher = module.eval()
    if objective is None:
        objective = Logits(schedule.distillation, schedule.temperature)
    rows = _calibration_rows(data)
    batches = [batch_of(data, data.train, some, module).inputs for some in rows]
    # An example of two: torch.export takes a 1 for a constant.
    example = batch_of(data, data.train, rows[-1][-1:] * 2, module).inputs
    schemes = _schemes(module, example, plan, start_float, exclude)
    student = prepare(
        module, scheme, example, activations=activations, ranges=ranges, scales=scales, plan=schemes
    )
    if start is not None:
        load_converted(student, start, start_float)
    calibrate(student, batches)
    float_score = score(teacher, data, objective, teacher)
    before = score(student.eval(), data, objective, teacher)
    train(
        student,
        data,
        schedule,
        folder,
        teacher=teacher,
        objective=objective,
        resume=resume,
        tensorboard=tensorboard,
        progress=progress,
    )
    after = score(student, data, objective, teacher)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    left: list[str] = []
    if not distributed or torch.distributed.get_rank() == 0:
        inputs, outputs = _names(student, start)
        left = export(
            student,
            output,
            example,
            input_names=inputs,
            output_names=outputs,
            open_axes=_open_axes(data, module),
        )
    return Finetuned(objective.measure, float_score, before, after, left)


def objective_of(name: str, schedule: Schedule) -> Objective:
    """Return the objective of a name, or what a person's ``package.module:function`` returns.

    Raises
    ------
    ConfigError
        If there is none of the name.
    """
    if name == Objectives.LOGITS:
        return Logits(schedule.distillation, schedule.temperature)
    if name == Objectives.EMBEDDINGS:
        return Embeddings()
    if ":" not in name:
        raise ConfigError(f"objective: found {name!r}, wanted {', '.join(Objectives)} or module:function")
    made: Objective = load_function(name)()
    return made


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


def _schemes(
    module: nn.Module,
    example: tuple[Tensor, ...],
    plan: Plan | None,
    float_model: str | os.PathLike[str] | None,
    exclude: str | None,
) -> dict[str, WeightScheme | None]:
    """Return the schemes of the layers that a plan or their exclusion decides."""
    if plan is None and exclude is None:
        return {}
    every = prepare(module, WeightScheme(), example, activations=None)
    schemes = {} if plan is None else plan_for(every, plan, float_model)
    try:
        left = [name for name in quantized_layers(every) if exclude and re.search(exclude, name)]
    except re.error as error:
        raise ConfigError(f"exclude: {exclude!r} is no regular expression ({error})") from None
    return schemes | dict.fromkeys(left)


def _names(student: nn.Module, start: str | os.PathLike[str] | None) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names of the file's inputs and outputs: those of the conversion it starts from, if any."""
    parameters = list(inspect.signature(student.forward).parameters)
    if start is not None:
        graph = onnx_file.load(start).graph
        inputs = [str(value.name) for value in graph.inputs]
        if len(inputs) == len(parameters):
            return inputs, [str(value.name) for value in graph.outputs]
    return (parameters if len(parameters) > 1 else ("input",)), ("output",)


def _calibration_rows(data: Data) -> list[list[int]]:
    """Return batches of calibration samples, those of about one length together."""
    count = min(_CALIBRATION, len(data.train))  # type: ignore[arg-type]
    if not count:
        raise DataError("training data: found no samples, wanted at least one")
    rows = list(range(count))
    if data.lengths is not None:
        rows.sort(key=data.lengths.__getitem__)
    return [rows[begin : begin + _BATCH] for begin in range(0, count, _BATCH)]


def _open_axes(data: Data, module: nn.Module) -> list[set[int]]:
    """Return for each input its first axis, and those whose length differs between samples."""
    count = min(_CALIBRATION, len(data.train))  # type: ignore[arg-type]
    singles = [batch_of(data, data.train, [row], module).inputs for row in range(count)]
    return [
        {0} | {axis for axis, found in enumerate(zip(*shapes, strict=True)) if len(set(found)) > 1}
        for shapes in zip(*([tensor.shape for tensor in inputs] for inputs in singles), strict=True)
    ]
