"""The data's path from a float model to a converted one, in one page.

read -> prepare -> layers -> schemes -> sites -> calibrate -> activations -> weights -> write -> self-check
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from fgq.config import ConversionConfig, Recipe
from fgq.conversion.check import CheckData, check_data
from fgq.conversion.dual import second_inputs, second_weights
from fgq.conversion.files import refuse_model_files
from fgq.conversion.heldout import HeldOut, Labelled, measure, set_aside
from fgq.conversion.heldout import held_out as judge_of
from fgq.conversion.smooth import smooth
from fgq.converters.biases import find_bias
from fgq.converters.compatibility import minimum_onnxruntime
from fgq.converters.dynamic_products import quantize_inputs
from fgq.converters.float_layers import FloatNode, find_layers
from fgq.converters.original import Original, prepare_judged
from fgq.converters.own import own_scale
from fgq.converters.passes import ExplicitZeroPoints
from fgq.converters.quantized_graph import QuantizedLayer, insert_quantizers, write_weights
from fgq.converters.reader import Source, read_float_model
from fgq.converters.select import Choice, choose_schemes
from fgq.converters.self_check import few_samples, self_check
from fgq.converters.sites import Site, find_sites, float_pools
from fgq.converters.survey import describe, describe_quantizers, model_bytes
from fgq.data.calibration import observe, range_warnings
from fgq.data.feed import cut_feed
from fgq.data.samples import Feed, InputSpec, has_open_batch, input_specs, labelled_batches
from fgq.data.samples import Source as DataSource
from fgq.errors import ConfigError, DataError, FgqError, ModelError, refusing
from fgq.format import onnx_file
from fgq.format.container import sign
from fgq.format.outputs import classifier_output
from fgq.plan import Plan
from fgq.plan.search import doubts, search
from fgq.plan.tradeoffs import BITS, Tradeoffs, apply_plan, weigh
from fgq.quantization.mmse import StreamingHistogram, choose_quantizer
from fgq.quantization.scheme import INT8_LIMIT, WITHOUT_VNNI_LIMIT, ActivationScheme, Quantizer, WeightScheme
from fgq.quantization.tensor import QuantizedTensor
from fgq.quantization.weights import check_finite, least_row_scale, quantize_weight
from fgq.recipes.checkpoint import Checkpoint, fingerprint
from fgq.recipes.layerwise import Refined, Task, refine_network
from fgq.recipes.reductions import is_reduction
from fgq.report import HeldOutCheck, LayerReport, Report, SelfCheck
from fgq.support.temporary import temporary_folder

Progress = Callable[[str, int, int | None], None]
"""Called with the name of a stage, the steps done and, where it is known, their number."""

CALIBRATION_BATCH = 32
"""Samples that are run together, where the model leaves the batch size open."""

RECONSTRUCTION_BATCH = 8
"""The same where steps of training are made on them."""

LEAST_FEEDS = 10
"""Fewer batches than these are cut into single samples, so that some can be held out."""

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
    if scheme is not None:
        if scheme.weight_limit not in (INT8_LIMIT, WITHOUT_VNNI_LIMIT):
            raise ConfigError(
                f"weight limit: found {scheme.weight_limit}, wanted {INT8_LIMIT}, or {WITHOUT_VNNI_LIMIT} "
                "for x86 without VNNI"
            )
        options |= {
            "group_size": scheme.group_size,
            "x86_without_vnni": scheme.weight_limit == WITHOUT_VNNI_LIMIT,
        }
    config = ConversionConfig(**options)
    with refusing("model"), temporary_folder() as folder:
        path = folder / "model.onnx"
        converted = _convert(model, path, config, calibration, progress, held_out=held_out, plan=plan)
    return Conversion(ir.to_proto(converted.model), converted.report)


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
    make_checkpoint = partial(Checkpoint, unfinished_folder(destination), resume=resume)
    with refusing(str(source)), onnx_file.staged(destination) as path:
        converted = _convert(
            source, path, config, calibration, progress, make_checkpoint, held_out=held_out, plan=plan
        )
    if converted.checkpoint is not None:
        converted.checkpoint.remove()
    return converted.report


def unfinished_folder(destination: str | os.PathLike[str]) -> Path:
    """Return where an interrupted conversion keeps the layers that it has finished, beside its output."""
    return Path(f"{os.fspath(destination)}.unfinished")


class _Converted(NamedTuple):
    model: ir.Model
    report: Report
    checkpoint: Checkpoint | None


def _convert(
    source: Source,
    path: Path,
    config: ConversionConfig,
    calibration: DataSource | None,
    progress: Progress | None,
    make_checkpoint: Callable[[str], Checkpoint] | None = None,
    *,
    held_out: DataSource | None = None,
    plan: Plan | None = None,
) -> _Converted:
    report_progress = progress or (lambda stage, done, total: None)
    report_progress("read", 0, None)
    model = read_float_model(source)
    original = Original(source, bare=ExplicitZeroPoints()(model).modified)
    float_bytes = model_bytes(source, model)
    prepare_judged(model, original)
    chosen = choose_schemes(model, find_layers(model), config)
    choices = [entry for entry in chosen if isinstance(entry, Choice)]
    _check_convertible(chosen, choices, config, calibration)
    _check_finite(choices)
    specs = input_specs(model)
    _check_plan(plan, config)
    together = RECONSTRUCTION_BATCH if config.recipe is Recipe.RECONSTRUCT else CALIBRATION_BATCH
    planned = plan is not None or config.is_planned
    batches, aside = _part_data(calibration, held_out, specs, together, planned=planned)
    feeds = None if batches is None else iter([feed for feed, _ in batches])
    check, feeds = check_data(original, model, specs, feeds)
    kept = None if feeds is None else _cut(feeds, check.divisible)
    judge = judge_of(model, aside) if aside else None
    job = _Job(config=config, original=original, float_bytes=float_bytes, kept=kept, check=check, judge=judge)
    if config.is_planned and kept is not None:
        scores = classifier_output(model) if judge is None else judge.scores
        sample = few_samples(kept[0], check.divisible, 1)
        tradeoffs = weigh(model, choices, kept, sample, config, scores, partial(report_progress, "plan"))
        if config.max_drop is not None:
            return _search(model, path, job, tradeoffs, report_progress)
        plan = tradeoffs.plan(config.budgets)
    return _finish(model, path, job, plan, report_progress, make_checkpoint)


def _check_plan(plan: Plan | None, config: ConversionConfig) -> None:
    if plan is not None and config.is_planned:
        raise ConfigError("plan: found one, and targets to make one by, wanted one of the two")


def _part_data(
    calibration: DataSource | None,
    held_out: DataSource | None,
    specs: Sequence[InputSpec],
    together: int,
    *,
    planned: bool,
) -> tuple[list[Labelled] | None, list[Labelled]]:
    """Return the batches to calibrate on, and those to measure on."""
    batches = None if calibration is None else list(labelled_batches(calibration, specs, together))
    if held_out is not None:
        return batches, list(labelled_batches(held_out, specs, together))
    if batches is None or not planned:
        return batches, []
    return set_aside(batches, has_open_batch(specs))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What holds for every plan that is tried."""

    config: ConversionConfig
    original: Original
    float_bytes: int
    kept: Sequence[Feed] | None
    check: CheckData
    judge: HeldOut | None


def _search(
    model: ir.Model,
    path: Path,
    job: _Job,
    tradeoffs: Tradeoffs,
    report_progress: Progress,
) -> _Converted:
    """Convert by the plan of fewest bits whose measured loss is at most `max_drop`."""
    most = job.config.max_drop
    assert most is not None
    if job.judge is None:
        raise DataError(
            "held-out data: found too few samples to set any aside, wanted some to measure the loss on; give "
            "more calibration data, or --held-out-data"
        )
    plans = tradeoffs.curve(job.config.budgets)
    held: dict[int, _Converted] = {}  # the last that held, no more: models may be large
    with temporary_folder() as folder:

        def attempt(index: int) -> HeldOutCheck:
            def progress(stage: str, done: int, total: int | None) -> None:
                report_progress(f"plan of {plans[index].takes[BITS]:.2f} bits: {stage}", done, total)

            place = folder / str(index) / path.name
            place.parent.mkdir()
            converted = _finish(model.clone(), place, job, plans[index], progress)
            check = converted.report.held_out
            assert check is not None  # there are samples to judge by
            if check.loss.value <= most:
                held.clear()
                held[index] = converted
            return check

        found = search(plans, job.config.budgets, most, attempt)
        for file in (folder / str(found)).iterdir():
            shutil.move(file, path.parent / file.name)
    return held[found]


def _finish(
    model: ir.Model,
    path: Path,
    job: _Job,
    plan: Plan | None,
    report_progress: Progress,
    make_checkpoint: Callable[[str], Checkpoint] | None = None,
) -> _Converted:
    """Convert a prepared float model in place, with the schemes of the plan if there is one."""
    config, kept = job.config, job.kept
    recipe = config.recipe or (Recipe.FGQ if kept is None else Recipe.CALIBRATED)
    chosen = choose_schemes(model, find_layers(model), config)
    if plan is not None:
        chosen = apply_plan(chosen, plan, config)
    choices = [entry for entry in chosen if isinstance(entry, Choice)]
    if kept is not None and config.percentile is not None:
        kept = _cut_inputs(model, find_sites(model, choices), kept, config.percentile)
    if config.smooths and kept is not None:
        choices = smooth(model, choices, kept, partial(report_progress, "smooth"))
    choices = second_weights(choices, config)
    observing = partial(report_progress, "calibrate")
    histograms = _observe(model, find_sites(model, choices), kept, observing, config.percentile)
    choices = second_inputs(choices, histograms, config.dual_activations_above)
    by_node = {choice.layer.node: choice for choice in choices}
    chosen = [by_node.get(_node(entry), entry) for entry in chosen]
    quantizers = _quantizers(find_sites(model, choices), histograms)
    tasks = [_task(choice, quantizers) for choice in choices]
    float_model = model.clone()
    insert_quantizers(model, quantizers)
    dynamic = quantize_inputs(model, choices)
    refined, checkpoint = Refined({}, [], {}), None
    if kept is not None and _needs_data(recipe, tasks):
        reductions = [task for task in tasks if is_reduction(task.layer)]
        if make_checkpoint is not None:
            schemes = [(task.layer.name, task.scheme) for task in reductions]
            checkpoint = make_checkpoint(fingerprint(model, (recipe, config, schemes), kept))
        first = Recipe.CALIBRATED if recipe is Recipe.RECONSTRUCT else recipe
        refining = partial(report_progress, "quantize weights")
        refined = refine_network(
            model, float_model, reductions, kept, first, refining, checkpoint, config.without
        )
        if recipe is Recipe.RECONSTRUCT:
            from fgq.recipes.reconstruct.blockwise import reconstruct_network

            refined = reconstruct_network(
                model, float_model, reductions, refined, kept, partial(report_progress, "reconstruct")
            )
    layers = []
    for done, task in enumerate(tasks):
        report_progress("quantize weights", done, len(tasks))
        weight = refined.weights.get(task.layer.node) or _nearest(task)
        layers.append(QuantizedLayer(task.layer, weight, task.input_scale))
    weights = {layer.layer.node: layer.weight for layer in layers}
    described = tuple(
        describe(entry, weights.get(_node(entry)), config.form, refined.checks.get(_node(entry)))
        for entry in chosen
    )
    activations = describe_quantizers(quantizers, histograms)

    report_progress("write", 0, None)
    write_weights(model, layers, config.form, dynamic)
    sign(model, config.form)
    onnx_file.save(model, path)
    report_progress("check", 0, None)
    check = job.check
    checked = None if check.outputs is None else self_check(path, check.feed, check.outputs, data=check.data)
    held_out = None if job.judge is None else measure(job.original.open().session, path, job.judge)
    report = Report(
        options=asdict(config) | {"weights": config.codes.value, "recipe": recipe.value},
        layers=described,
        quantizers=activations,
        float_bytes=job.float_bytes,
        converted_bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
        minimum_onnxruntime=minimum_onnxruntime(model),
        self_check=checked,
        warnings=(
            *check.warnings,
            *range_warnings(
                histograms,
                {str(site.tensor.name): by_bits[max(by_bits)] for site, by_bits in quantizers.items()},
            ),
            *refined.warnings,
            *(f"{node.name}: left float, as {reason}" for node, reason in float_pools(model) if quantizers),
            *_warnings(described, checked),
            *doubts(plan, held_out, config.max_drop),
        ),
        held_out=held_out,
        plan=None if plan is None else plan.to_dict(),
    )
    return _Converted(model, report, checkpoint)


def _check_convertible(
    chosen: Sequence[Choice | FloatNode],
    choices: Sequence[Choice],
    config: ConversionConfig,
    calibration: DataSource | None,
) -> None:
    if not choices:
        reasons = "; ".join(
            f"{entry.name}: {entry.reason}" for entry in chosen[:3] if isinstance(entry, FloatNode)
        )
        raise ModelError(f"model: found no layer to convert, wanted at least one ({reasons or 'no weights'})")
    if config.recipe is Recipe.RECONSTRUCT and importlib.util.find_spec("torch") is None:
        raise ConfigError(
            f"recipe {config.recipe}: found no PyTorch, wanted it for training; install the extra train: "
            "pip install 'fgq[train]'"
        )
    if config.recipe not in (None, Recipe.FGQ) and calibration is None:
        raise DataError(
            f"calibration data: found none, wanted some hundred samples for the recipe {config.recipe}; give "
            "--calibration-data FILE.npz or a folder, or --recipe fgq"
        )
    if config.is_planned and calibration is None:
        raise DataError(
            "calibration data: found none, wanted some hundred samples to plan by; give --calibration-data "
            "FILE.npz or a folder"
        )
    static = config.activation_scheme is not None and not config.activation_scheme.is_dynamic
    if static and calibration is None:
        raise DataError(
            f"calibration data: found none, wanted some hundred samples for {config.activations} "
            "activations; give --calibration-data FILE.npz or a folder, --activations int8-dynamic, or "
            "--activations none to quantize weights alone"
        )


def _check_finite(choices: Sequence[Choice]) -> None:
    """Refuse NaN in weights by their layer, before calibration meets it in the activations after."""
    for choice in choices:
        layer = choice.layer
        for what, values in (("weights", layer.weight_array), ("bias", layer.bias_array)):
            if values is not None:
                check_finite(f"{layer.name}: {what}", values)


def _cut(feeds: Iterator[Feed], divisible: bool) -> list[Feed]:
    """Return all feeds, cut to single samples where they are few and the model runs on parts of them."""
    kept = list(feeds)
    lengths = [{len(array) for array in feed.values() if array.ndim} for feed in kept]
    if len(kept) >= LEAST_FEEDS or not divisible or any(len(found) != 1 for found in lengths):
        return kept
    return [
        cut_feed(feed, row, row + 1)
        for feed, found in zip(kept, lengths, strict=True)
        for row in range(next(iter(found)))
    ]


def _observe(
    model: ir.Model,
    sites: Sequence[Site],
    feeds: Sequence[Feed] | None,
    progress: Callable[[int, int | None], None],
    percentile: float | None,
) -> dict[str, StreamingHistogram]:
    """Count the values at each site, by the names of the tensors."""
    if not sites or feeds is None:
        return {}
    names = [str(site.tensor.name) for site in sites]
    return observe(model, names, feeds, progress=lambda done, _: progress(done, None), percentile=percentile)


def _cut_inputs(
    model: ir.Model, sites: Sequence[Site], feeds: Sequence[Feed], percentile: float
) -> list[Feed]:
    """Cut what is quantized of the model's inputs to its range, as its quantizer will.

    What lies beyond would otherwise still set the ranges of all that is computed from it.
    """
    inputs = {str(value.name) for value in model.graph.inputs}
    names = [name for site in sites if (name := str(site.tensor.name)) in inputs]
    ranges = {
        name: histogram.percentile_range()
        for name, histogram in observe(model, names, feeds, percentile=percentile).items()
    }
    return [
        {name: array.clip(*ranges[name]) if name in ranges else array for name, array in feed.items()}
        for feed in feeds
    ]


def _quantizers(
    sites: Sequence[Site], histograms: Mapping[str, StreamingHistogram]
) -> dict[Site, dict[int, Quantizer]]:
    """Return the quantizers of each site, one for each width."""
    if not histograms:
        return {}
    found: dict[Site, dict[int, Quantizer]] = {}
    for site in sites:
        histogram = histograms[str(site.tensor.name)]
        found[site] = {bits: choose_quantizer(histogram, ActivationScheme(bits=bits)) for bits in site.bits}
    for site in sites:
        if site.same_as is not None:
            found[site][8] = found[_origin(site)][8]
    return found


def _origin(site: Site) -> Site:
    while site.same_as is not None:
        site = site.same_as
    return site


def _task(choice: Choice, quantizers: Mapping[Site, Mapping[int, Quantizer]]) -> Task:
    """Say what is known of a layer before its weights are quantized."""
    layer = choice.layer
    bias = find_bias(layer)
    input_scale = least = None
    if choice.activations is not None and not choice.activations.is_dynamic:
        input_scale = own_scale(layer.activation)
        if input_scale is None:
            by_tensor = {site.tensor: found for site, found in quantizers.items()}
            input_scale = by_tensor[layer.activation][choice.activations.width].scale
        if bias is not None:
            # onnxruntime makes an int32 bias of the Add behind a MatMul too, and does not keep it in range
            values = np.where(np.isfinite(bias.values), bias.values, 0)  # as of masks of -inf
            least = least_row_scale(values, input_scale, layer.products)
    return Task(layer=layer, scheme=choice.weights, input_scale=input_scale, least=least)


def _needs_data(recipe: Recipe, tasks: Sequence[Task]) -> bool:
    """Tell whether a recipe looks at what the layers read; the paper's own does so for convolutions."""
    return recipe is not Recipe.FGQ or any(task.layer.op_type == "Conv" for task in tasks)


def _nearest(task: Task) -> QuantizedTensor:
    """Quantize a layer's weights without data."""
    layer = task.layer
    weight = layer.weight_array
    try:
        return quantize_weight(
            weight,
            task.scheme,
            group_axis=layer.group_axis,
            channel_axis=layer.channel_axis,
            least_row_scale=task.least,
            # onnxruntime has no integer product with a batched constant on the right and scales per
            # column (docs/architecture.md, Traps).
            per_channel=not (
                layer.op_type == "MatMul"
                and layer.weight_index == 1
                and weight.ndim > 2
                and task.input_scale is not None
            ),
        )
    except FgqError as error:
        raise type(error)(f"{layer.name}: {error}") from None


def _node(entry: Choice | FloatNode) -> ir.Node:
    return entry.layer.node if isinstance(entry, Choice) else entry.node


def _warnings(layers: Sequence[LayerReport], check: SelfCheck | None) -> Iterator[str]:
    for layer in layers:
        if layer.lost_groups:
            yield (
                f"{layer.name}: {layer.lost_groups} groups of small weights became zero, "
                "as their scale is below 1/2 of the row's smallest step"
            )
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
