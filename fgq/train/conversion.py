"""Start training from the codes of a conversion."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from fgq.converters.float_layers import Layer, find_layers
from fgq.converters.passes import prepare as prepare_graph
from fgq.errors import ConfigError, ModelError
from fgq.format import container, onnx_file
from fgq.format.container import SCALED_KEY, read_weight
from fgq.graph.queries import constant, is_operator
from fgq.plan.plan_file import Plan
from fgq.quantization.scheme import WeightScheme
from fgq.quantization.tensor import QuantizedTensor
from fgq.train.prepare import quantized_layers
from fgq.train.twins import QuantizedLayer

_ALIKE = 1e-4
"""Weights agree if they differ by less than this share of the largest (normalization is folded)."""


@torch.no_grad()
def load_converted(
    module: torch.nn.Module,
    path: str | os.PathLike[str],
    float_model: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Take the quantized weights, the scales and the biases of a conversion, all or none.

    A node is a layer's if it has the layer's name, or its weight or its bias has the name of the layer's, or
    the node of the same name in the float model has the layer's weights. Other parameters, as those of a
    normalization, are taken where the file has them by name: the recipe ``reconstruct`` trains them too.

    Parameters
    ----------
    module : torch.nn.Module
        As `fgq.train.prepare` returned it; its weights still float.
    path : path-like
        A converted model.
    float_model : path-like, optional
        The model that was converted.

    Returns
    -------
    list of str
        The layers that were found.

    Raises
    ------
    ModelError
        If the file holds none of the layers or a weight of another shape, or if its weights took scales of
        channels (`fgq.conversion.smooth`): their codes are not those of the module's.
    """
    layers = quantized_layers(module)
    by_node = {} if float_model is None else _by_weights(layers, float_model)
    found: dict[str, tuple[QuantizedTensor, NDArray[np.float32] | None]] = {}
    model = container.load(path)
    if SCALED_KEY in model.metadata_props:
        raise ModelError(
            f"{path}: found weights that took scales of channels, wanted those of the module; convert with "
            "--no-smooth"
        )
    for node in model.graph:
        if not is_operator(node, "Conv", "Gemm", "MatMul") or node.inputs[1] is None:
            continue
        bias = _bias(node)
        name = by_node.get(str(node.name)) or _named(node, bias, layers)
        if name is None:
            continue
        layer = layers[name]
        axes = (layer.channel_axis, layer.group_axis)
        if node.op_type != "MatMul":  # which holds a Linear's weight the other way round
            axes = axes[::-1]
        tensor = read_weight(node.inputs[1], group_axis=axes[0], channel_axis=axes[1])
        tensor = None if tensor is None else laid_out(tensor, layer.group_axis, layer.channel_axis)
        if tensor is None or tensor.shape != tuple(layer.weight.shape):
            shape = "no quantized weight" if tensor is None else str(list(tensor.shape))
            raise ModelError(f"{path}: {name}: found {shape}, wanted {list(layer.weight.shape)}")
        found[name] = tensor, _dequantized(bias)
    if not found:
        raise ModelError(
            f"{path}: found none of the module's layers, wanted nodes, weights or biases with their names; "
            "give the float model too, whose weights tell which they are"
        )
    for name, (tensor, array) in found.items():
        layer = layers[name]
        layer.start_from(tensor)
        if array is not None and layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(array.copy()))
    own = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    for name, parameter in module.named_parameters():
        array = constant(model.graph.initializers.get(name))
        if id(parameter) not in own and array is not None and array.shape == tuple(parameter.shape):
            parameter.copy_(torch.from_numpy(array.copy()))
    return list(found)


def plan_for(
    module: torch.nn.Module, plan: Plan, float_model: str | os.PathLike[str] | None = None
) -> dict[str, WeightScheme | None]:
    """Return the schemes that a converter's plan gives the layers of a module.

    Parameters
    ----------
    module : torch.nn.Module
        As `fgq.train.prepare` returned it, with any schemes.
    plan : Plan
        Of the nodes of a model.
    float_model : path-like, optional
        The model. Without it the plan's names are those of the module's layers.

    Returns
    -------
    dict of str to WeightScheme or None
        For `fgq.train.prepare`; layers that the plan does not name, as embeddings, stay float.

    Raises
    ------
    ConfigError
        If a name of the plan belongs to no layer.
    """
    layers = quantized_layers(module)
    by_node = {} if float_model is None else _by_weights(layers, float_model)
    schemes: dict[str, WeightScheme | None] = dict.fromkeys(layers)
    for node, planned in plan.layers.items():
        name = by_node.get(node, node)
        if name not in layers:
            raise ConfigError(
                f"plan: {node}: found no layer of this name or its weights, wanted names of the module's "
                f"layers, as {', '.join(list(layers)[:3])}; or give the float model that was planned"
            )
        schemes[name] = planned.scheme
    return schemes


def laid_out(tensor: QuantizedTensor, group_axis: int, channel_axis: int) -> QuantizedTensor:
    """Return a weight with its axes where they are wanted: a MatMul holds a Linear's weight transposed."""
    if (tensor.group_axis, tensor.channel_axis) == (group_axis, channel_axis):
        return tensor
    planes = tuple(
        replace(p, codes=np.ascontiguousarray(p.codes.T), alpha=np.ascontiguousarray(p.alpha.T))
        for p in tensor.planes
    )
    return replace(tensor, planes=planes, group_axis=group_axis, channel_axis=channel_axis)


def _named(node: ir.Node, bias: ir.Value | None, layers: Mapping[str, QuantizedLayer]) -> str | None:
    weight, added = str(node.inputs[1].name), "" if bias is None else str(bias.name)  # type: ignore[union-attr]
    for name in layers:
        if node.name == name or weight.startswith(f"{name}.weight") or added.startswith(f"{name}.bias"):
            return name
    return None


def _by_weights(layers: Mapping[str, QuantizedLayer], float_model: str | os.PathLike[str]) -> dict[str, str]:
    """Return the layer of each node whose weights are those of exactly one layer not yet taken."""
    model = onnx_file.load(float_model)
    prepare_graph(model)
    owners: dict[str, str] = {}
    for entry in find_layers(model):
        if not isinstance(entry, Layer):
            continue
        for name, layer in layers.items():
            if name not in owners.values() and alike(
                entry, layer, layer.weight.detach().float().cpu().numpy()
            ):
                owners[entry.name] = name
                break
    return owners


def alike(entry: Layer, layer: QuantizedLayer, values: NDArray[np.float32]) -> bool:
    """Tell whether a node's weights are the given values of a layer, in whichever layout."""
    found: NDArray[np.float32] = entry.weight_array
    if (entry.group_axis, entry.channel_axis) != (layer.group_axis, layer.channel_axis):
        found = found.T
    return found.shape == values.shape and bool(np.abs(found - values).max() <= _ALIKE * np.abs(values).max())


def _bias(node: ir.Node) -> ir.Value | None:
    """Return the constant that an operator, or the sum behind a MatMul, adds to the products."""
    if node.op_type != "MatMul":
        return node.inputs[2] if len(node.inputs) > 2 else None
    readers = list(node.outputs[0].consumers())
    if len(readers) != 1 or not is_operator(readers[0], "Add"):
        return None
    others = [value for value in readers[0].inputs if value is not node.outputs[0]]
    return others[0] if len(others) == 1 and _dequantized(others[0]) is not None else None


def _dequantized(value: ir.Value | None) -> NDArray[np.float32] | None:
    producer = None if value is None else value.producer()
    if producer is None or not is_operator(producer, "DequantizeLinear"):
        return constant(value)
    integers, scale = constant(producer.inputs[0]), constant(producer.inputs[1])
    return None if integers is None or scale is None else (integers * scale).astype(np.float32)
