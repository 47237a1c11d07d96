"""Third stage: activations are quantized in the graph, and every layer has a quantized weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fgq.config import Recipe
from fgq.conversion.calibrated import Calibrated
from fgq.conversion.context import Context
from fgq.converters.biases import find_bias
from fgq.converters.dynamic_products import quantize_inputs
from fgq.converters.own import own_scale
from fgq.converters.quantized_graph import QuantizedLayer, insert_quantizers
from fgq.converters.select import Choice
from fgq.converters.sites import Site
from fgq.errors import FgqError
from fgq.quantization.scheme import Quantizer
from fgq.quantization.tensor import QuantizedTensor
from fgq.quantization.weights import least_row_scale, quantize_weight
from fgq.recipes.checkpoint import Checkpoint, fingerprint
from fgq.recipes.fitting import Task
from fgq.recipes.layerwise import Network, Refined, refine_network
from fgq.recipes.reductions import is_reduction
from fgq.recipes.registered import load_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A model with quantizers and still with float weights, and the weights that take their place.

    Parameters
    ----------
    calibrated : Calibrated
    recipe : Recipe
        The one that was used.
    layers : sequence of QuantizedLayer
        The layers that are converted, in graph order.
    dynamic : mapping of onnx_ir.Value to onnx_ir.Node
        Of the activations whose ranges are found at run time, what quantizes them.
    refined : Refined
        What data have made of the weights; empty where the recipe looks at none.
    checkpoint : Checkpoint or None
        Where finished layers are kept.
    """

    calibrated: Calibrated
    recipe: Recipe
    layers: Sequence[QuantizedLayer]
    dynamic: Mapping[ir.Value, ir.Node]
    refined: Refined
    checkpoint: Checkpoint | None


def quantize(calibrated: Calibrated, context: Context) -> Quantized:
    """Quantize activations and weights.

    Parameters
    ----------
    calibrated : Calibrated
        Its model is changed in place: quantizers are inserted, and biases corrected.
    context : Context

    Raises
    ------
    FgqError
        If a weight cannot be quantized.
    """
    recipe = context.config.recipe or (Recipe.FGQ if calibrated.feeds is None else Recipe.CALIBRATED)
    tasks = [_task(choice, calibrated.quantizers) for choice in calibrated.choices]
    float_model = calibrated.model.clone()
    insert_quantizers(calibrated.model, calibrated.quantizers)
    dynamic = quantize_inputs(calibrated.model, calibrated.choices)
    refined, checkpoint = _refine(calibrated, float_model, tasks, recipe, context)
    layers = []
    for done, task in enumerate(tasks):
        context.progress("quantize weights", done, len(tasks))
        weight = refined.weights.get(task.layer.node) or _nearest(task)
        layers.append(QuantizedLayer(task.layer, weight, task.input_scale))
    return Quantized(
        calibrated=calibrated,
        recipe=recipe,
        layers=layers,
        dynamic=dynamic,
        refined=refined,
        checkpoint=checkpoint,
    )


def _task(choice: Choice, quantizers: Mapping[Site, Mapping[int, Quantizer]]) -> Task:
    """Say what is known of a layer before its weights are quantized."""
    layer = choice.layer
    bias = find_bias(layer)
    input_scale = least = None
    if choice.activations is not None and not choice.activations.is_dynamic:
        input_scale = own_scale(layer.activation)
        if input_scale is None:
            by_tensor = {site.tensor: by_bits for site, by_bits in quantizers.items()}
            input_scale = by_tensor[layer.activation][choice.activations.width].scale
        if bias is not None:
            # onnxruntime makes an int32 bias of the Add behind a MatMul too, and does not keep it in range
            values = np.where(np.isfinite(bias.values), bias.values, 0)  # as of masks of -inf
            least = least_row_scale(values, input_scale, layer.products)
    return Task(layer=layer, scheme=choice.weights, input_scale=input_scale, least=least)


def _refine(
    calibrated: Calibrated,
    float_model: ir.Model,
    tasks: Sequence[Task],
    recipe: Recipe,
    context: Context,
) -> tuple[Refined, Checkpoint | None]:
    """Let data choose the weights of the layers that are matrix products, where the recipe looks at data."""
    model, feeds, config = calibrated.model, calibrated.feeds, context.config
    if feeds is None or not _needs_data(recipe, tasks):
        return Refined({}, [], {}), None
    reductions = [task for task in tasks if is_reduction(task.layer)]
    checkpoint = None
    if context.make_checkpoint is not None:
        schemes = [(task.layer.name, task.scheme) for task in reductions]
        checkpoint = context.make_checkpoint(fingerprint(model, (recipe, config, schemes), feeds))
    network = Network(
        model=model, float_model=float_model, tasks=reductions, feeds=feeds, without=config.without
    )
    registered = load_recipe(recipe)
    progress = context.stage("quantize weights")
    refined = refine_network(network, registered.starts_from or recipe, progress, checkpoint)
    return registered.finish(network, refined, context.progress), checkpoint


def _needs_data(recipe: Recipe, tasks: Sequence[Task]) -> bool:
    """Tell whether data are looked at; of recipes that need none, convolutions still use them."""
    return load_recipe(recipe).needs_data or any(task.layer.op_type == "Conv" for task in tasks)


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
