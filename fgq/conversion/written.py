"""Last stage: the converted model is on disk, was run, and is described."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import onnx
import onnx_ir as ir

from fgq.conversion.context import Context
from fgq.conversion.heldout import measure
from fgq.conversion.quantized import Quantized
from fgq.converters.compatibility import minimum_onnxruntime
from fgq.converters.quantized_graph import write_weights
from fgq.converters.select import Choice
from fgq.converters.self_check import self_check
from fgq.converters.sites import float_pools
from fgq.converters.survey import describe, describe_quantizers
from fgq.data.calibration import range_warnings
from fgq.format import onnx_file
from fgq.format.container import sign
from fgq.plan.search import doubts
from fgq.recipes.checkpoint import Checkpoint
from fgq.report import HeldOutCheck, LayerReport, Report, SelfCheck

NOTICED = 1e-4
"""A relative difference that no order of sums in float32 makes."""

POOR_OUTPUT_DB = 10.0
"""Below this ratio of the float output to the difference, the report warns."""


class Conversion(NamedTuple):
    """A converted model and what was done to it.

    Parameters
    ----------
    model : onnx.ModelProto
    report : Report
    """

    model: onnx.ModelProto
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A converted model that was written and run.

    Parameters
    ----------
    model : onnx_ir.Model
    report : Report
    checkpoint : Checkpoint or None
        Where finished layers are still kept.
    """

    model: ir.Model
    report: Report
    checkpoint: Checkpoint | None


def write(quantized: Quantized, path: Path, context: Context) -> Written:
    """Write a quantized model to a file, run it, and report.

    Parameters
    ----------
    quantized : Quantized
        Its model is changed in place: integer weights take the place of float ones.
    path : Path
        In a folder of its own.
    context : Context

    Raises
    ------
    FgqError
        If the file cannot be written, or does not run.
    """
    calibrated = quantized.calibrated
    prepared, model, form = calibrated.prepared, calibrated.model, context.config.form
    # Described before the float weights are gone.
    described = _describe(quantized, context)
    quantizers = describe_quantizers(calibrated.quantizers, calibrated.histograms)
    context.progress("write", 0, None)
    write_weights(model, quantized.layers, form, quantized.dynamic)
    sign(model, form)
    onnx_file.save(model, path)
    context.progress("check", 0, None)
    check, judge = prepared.check, prepared.judge
    checked = None if check.outputs is None else self_check(path, check.feed, check.outputs, data=check.data)
    held_out = None if judge is None else measure(prepared.original.open().session, path, judge)
    report = Report(
        options=asdict(context.config)
        | {"weights": context.config.codes.value, "recipe": quantized.recipe.value},
        layers=described,
        quantizers=quantizers,
        float_bytes=prepared.float_bytes,
        converted_bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
        minimum_onnxruntime=minimum_onnxruntime(model),
        self_check=checked,
        warnings=tuple(_warnings(quantized, described, checked, held_out, context)),
        held_out=held_out,
        plan=None if calibrated.plan is None else calibrated.plan.to_dict(),
    )
    return Written(model=model, report=report, checkpoint=quantized.checkpoint)


def _describe(quantized: Quantized, context: Context) -> tuple[LayerReport, ...]:
    weights = {layer.layer.node: layer.weight for layer in quantized.layers}
    described = []
    for entry in quantized.calibrated.chosen:
        node = entry.layer.node if isinstance(entry, Choice) else entry.node
        check = quantized.refined.checks.get(node)
        described.append(describe(entry, weights.get(node), context.config.form, check))
    return tuple(described)


def _warnings(
    quantized: Quantized,
    layers: Sequence[LayerReport],
    check: SelfCheck | None,
    held_out: HeldOutCheck | None,
    context: Context,
) -> Iterator[str]:
    calibrated = quantized.calibrated
    yield from calibrated.prepared.check.warnings
    widest = {str(site.tensor.name): by_bits[max(by_bits)] for site, by_bits in calibrated.quantizers.items()}
    yield from range_warnings(calibrated.histograms, widest)
    yield from quantized.refined.warnings
    if calibrated.quantizers:
        for node, reason in float_pools(calibrated.model):
            yield f"{node.name}: left float, as {reason}"
    for layer in layers:
        if layer.lost_groups:
            yield (
                f"{layer.name}: {layer.lost_groups} groups of small weights became zero, "
                "as their scale is below 1/2 of the row's smallest step"
            )
    yield from _check_warnings(check)
    yield from doubts(calibrated.plan, held_out, context.config.max_drop)


def _check_warnings(check: SelfCheck | None) -> Iterator[str]:
    if check is None:
        yield "the written file was not run: no data were at hand that the model runs on"
        return
    if check.by_default > NOTICED:
        yield (
            f"onnxruntime's default options change results by {check.by_default:.1e} of the largest on this "
            "processor, as it adds products in saturating int16 without VNNI, or makes MatMul's activations "
            "8-bit: set session.x64quantprecision and session.qdq_matmulnbits_accuracy_level to 1 "
            "(docs/runtime.md), convert with --x86-without-vnni, or run the file in fgq.Session"
        )
    if not check.repeatable:
        yield "onnxruntime gave two results for one input: versions before 1.26 do on some machines with AMX"
    for output in check.outputs:
        if not output.signal_to_noise_db >= POOR_OUTPUT_DB:  # NaN too
            yield (
                f"output {output.name}: {output.signal_to_noise_db:.1f} dB from the float model's; expect a "
                "loss of accuracy, measure it with fgq eval, and try a smaller --group-size"
            )
