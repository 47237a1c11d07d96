"""The data's path from a float model to a converted one: four stages, each a value that the next takes.

`Prepared`: the model was read, its layers found and the data checked. `Calibrated`: schemes and the ranges of
activations are settled. `Quantized`: every layer has its weight. `Written`: the file was written, run and
described. `Context` holds the options, the data and the progress for all of them. Where targets ask for a
plan, `fgq.conversion.planned` finds it after the first stage.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fgq.config import ConversionConfig, options_of_scheme
from fgq.conversion.calibrated import calibrate
from fgq.conversion.context import Context, silent
from fgq.conversion.context import unfinished_folder as unfinished_folder
from fgq.conversion.files import refuse_model_files
from fgq.conversion.planned import best_plan, search_plan
from fgq.conversion.prepared import Prepared, prepare
from fgq.conversion.quantized import quantize
from fgq.conversion.written import Conversion as Conversion
from fgq.conversion.written import Written, write
from fgq.converters.reader import Source
from fgq.data.sources import Source as DataSource
from fgq.errors import refusing
from fgq.format import onnx_file
from fgq.plan import Plan
from fgq.quantization.scheme import WeightScheme
from fgq.recipes.checkpoint import Checkpoint
from fgq.report import Report
from fgq.support.progress import Progress
from fgq.support.temporary import temporary_folder


def convert(
    model: Source,
    *,
    scheme: WeightScheme | None = None,
    calibration: DataSource | None = None,
    held_out: DataSource | None = None,
    plan: Plan | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Conversion:
    """Convert a float model to ternary weights.

    Parameters
    ----------
    model : path-like, onnx.ModelProto or onnx_ir.Model
        The float model, which is not changed.
    scheme : WeightScheme, optional
        Group size and range of alpha; it replaces the options ``group_size`` and ``x86_without_vnni``.
    calibration : Samples, reader with ``get_next``, mapping of arrays, or iterable of feeds, optional
        Some hundred samples of the model's input; needed for ``int8`` and ``int4`` activations.
    held_out : as `calibration`, optional
        Samples to measure the result on. Without them a fifth of the calibration data is set aside where
        the layers' schemes are planned.
    plan : Plan, optional
        The scheme of every layer, in place of targets (`fgq.plan.read_plan`).
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    **options
        Any other field of `fgq.config.ConversionConfig`.

    Returns
    -------
    Conversion
        The converted model and the report.

    Raises
    ------
    FgqError
        If the model, the data or an option cannot be used.

    Examples
    --------
    >>> model, report = fgq.convert("model.onnx", group_size=4, calibration={"image": x})  # doctest: +SKIP
    """
    config = ConversionConfig(**options | ({} if scheme is None else options_of_scheme(scheme)))
    context = Context(
        config=config, calibration=calibration, held_out=held_out, plan=plan, progress=progress or silent
    )
    with refusing("model"), temporary_folder() as folder:
        written = _convert(model, folder / "model.onnx", context)
    return Conversion(ir.to_proto(written.model), written.report)


def convert_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    config: ConversionConfig,
    calibration: DataSource | None = None,
    progress: Progress | None = None,
    *,
    held_out: DataSource | None = None,
    plan: Plan | None = None,
    resume: bool = False,
) -> Report:
    """Convert a model file, and write the result whole or not at all.

    Layers whose weights data have refined are kept in `unfinished_folder` until the result is written.

    Parameters
    ----------
    source, destination : path-like
    config : ConversionConfig
    calibration : as for `convert`
    progress : callable, optional
        Called as ``progress(stage, done, total)``.
    held_out, plan : as for `convert`
    resume : bool
        Whether to go on from the layers that an interrupted conversion has finished.

    Raises
    ------
    FgqError
        If the model, the data or an option cannot be used, or the result cannot be written.
    """
    refuse_model_files(source, onnx_file.load(source), destination)
    context = Context(
        config=config,
        calibration=calibration,
        held_out=held_out,
        plan=plan,
        progress=progress or silent,
        make_checkpoint=partial(Checkpoint, unfinished_folder(destination), resume=resume),
    )
    with refusing(str(source)), onnx_file.staged(destination) as path:
        written = _convert(source, path, context)
    if written.checkpoint is not None:
        written.checkpoint.remove()
    return written.report


def _convert(source: Source, path: Path, context: Context) -> Written:
    prepared = prepare(source, context)
    if context.config.max_drop is not None:
        return search_plan(prepared, path, context, _finish)
    plan = best_plan(prepared, context) if context.config.is_planned else context.plan
    return _finish(prepared, path, plan, context)


def _finish(prepared: Prepared, path: Path, plan: Plan | None, context: Context) -> Written:
    quantized = quantize(calibrate(prepared, plan, context), context)
    return write(quantized, path, context)
