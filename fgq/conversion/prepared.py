"""First stage: the model is read and prepared, its layers are found, and the data are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from fgq.config import ConversionConfig
from fgq.conversion.check import CheckData, check_data
from fgq.conversion.context import Context
from fgq.conversion.heldout import HeldOut, Labelled, set_aside
from fgq.conversion.heldout import held_out as judge_of
from fgq.converters.float_layers import FloatNode, find_layers
from fgq.converters.original import Original, prepare_judged
from fgq.converters.passes import ExplicitZeroPoints
from fgq.converters.reader import Source, read_float_model
from fgq.converters.select import Choice, choose_schemes
from fgq.converters.survey import model_bytes
from fgq.data.feed import Feed, cut_feed
from fgq.data.inputs import InputSpec, has_open_batch, input_specs
from fgq.data.sources import labelled_batches
from fgq.errors import ConfigError, DataError, ModelError
from fgq.quantization.weights import check_finite
from fgq.recipes.registered import load_recipe

CALIBRATION_BATCH = 32
"""Samples that are run together, where the model leaves the batch size open."""

LEAST_FEEDS = 10
"""Fewer batches than these are cut into single samples, so that some can be held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A float model that is ready to be converted, and its data.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared by the passes; the stages that follow change it in place.
    original : Original
        The model as it came in.
    float_bytes : int
        The size of the model as it came in.
    chosen : sequence of Choice or FloatNode
        Its layers in graph order, with the schemes that the configuration alone gives them.
    feeds : sequence of feed, or None
        Calibration data.
    check : CheckData
    judge : HeldOut or None
        Samples to measure the result on.
    """

    model: ir.Model
    original: Original
    float_bytes: int
    chosen: Sequence[Choice | FloatNode]
    feeds: Sequence[Feed] | None
    check: CheckData
    judge: HeldOut | None

    @property
    def choices(self) -> list[Choice]:
        """The layers that are converted."""
        return [entry for entry in self.chosen if isinstance(entry, Choice)]

    def copy(self, config: ConversionConfig) -> Prepared:
        """Return the same with a model of its own, so that several plans can be tried."""
        model = self.model.clone()
        return replace(self, model=model, chosen=choose_schemes(model, find_layers(model), config))


def prepare(source: Source, context: Context) -> Prepared:
    """Read and prepare a model, find its layers, and check options and data against both.

    Parameters
    ----------
    source : path-like, onnx.ModelProto or onnx_ir.Model
    context : Context

    Raises
    ------
    FgqError
        If the model, the data or an option cannot be used.
    """
    config = context.config
    context.progress("read", 0, None)
    model = read_float_model(source)
    original = Original(source, bare=ExplicitZeroPoints()(model).modified)
    float_bytes = model_bytes(source, model)
    prepare_judged(model, original)
    chosen = choose_schemes(model, find_layers(model), config)
    _check_convertible(chosen)
    _check_data_given(config, has_data=context.calibration is not None)
    _check_finite(chosen)
    specs = input_specs(model)
    if context.plan is not None and config.is_planned:
        raise ConfigError("plan: found one, and targets to make one by, wanted one of the two")
    batches, aside = _part_data(context, specs)
    feeds = None if batches is None else iter([feed for feed, _ in batches])
    check, feeds = check_data(original, model, specs, feeds)
    return Prepared(
        model=model,
        original=original,
        float_bytes=float_bytes,
        chosen=chosen,
        feeds=None if feeds is None else _cut(feeds, check.divisible),
        check=check,
        judge=judge_of(model, aside) if aside else None,
    )


def _check_convertible(chosen: Sequence[Choice | FloatNode]) -> None:
    floats = [entry for entry in chosen if isinstance(entry, FloatNode)]
    if len(floats) == len(chosen):
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in floats[:3])
        raise ModelError(f"model: found no layer to convert, wanted at least one ({reasons or 'no weights'})")


def _check_data_given(config: ConversionConfig, *, has_data: bool) -> None:
    recipe = None if config.recipe is None else load_recipe(config.recipe)
    if recipe is not None:
        recipe.check()
    if has_data:
        return
    missing = "calibration data: found none, wanted some hundred samples"
    give = "give --calibration-data FILE.npz or a folder"
    if recipe is not None and recipe.needs_data:
        raise DataError(f"{missing} for the recipe {config.recipe}; {give}, or --recipe fgq")
    if config.is_planned:
        raise DataError(f"{missing} to plan by; {give}")
    if config.activation_scheme is not None and not config.activation_scheme.is_dynamic:
        raise DataError(
            f"{missing} for {config.activations} activations; {give}, --activations int8-dynamic, or "
            "--activations none to quantize weights alone"
        )


def _check_finite(chosen: Sequence[Choice | FloatNode]) -> None:
    """Refuse NaN in weights by their layer, before calibration meets it in the activations after."""
    for entry in chosen:
        if isinstance(entry, Choice):
            layer = entry.layer
            for what, values in (("weights", layer.weight_array), ("bias", layer.bias_array)):
                if values is not None:
                    check_finite(f"{layer.name}: {what}", values)


def _part_data(context: Context, specs: Sequence[InputSpec]) -> tuple[list[Labelled] | None, list[Labelled]]:
    """Return the batches to calibrate on, and those to measure on."""
    recipe, given = context.config.recipe, context.calibration
    size = (None if recipe is None else load_recipe(recipe).batch) or CALIBRATION_BATCH
    batches = None if given is None else list(labelled_batches(given, specs, size))
    if context.held_out is not None:
        return batches, list(labelled_batches(context.held_out, specs, size))
    if batches is None or not (context.plan is not None or context.config.is_planned):
        return batches, []
    return set_aside(batches, has_open_batch(specs))


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
