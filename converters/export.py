"""Out of the pipeline again: a converted model as plain int8, without functions, or as float."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike, NDArray

from fgq.config import ExportForm
from fgq.converters.dynamic_products import drop_dynamic
from fgq.converters.quantized_graph import finish
from fgq.converters.rewriting import Names, add_initializer, redirect, take_name
from fgq.errors import ModelError
from fgq.format.container import FORM_KEY, is_unpack, unpacked
from fgq.format.dynamic_functions import find_dynamic_products
from fgq.format.functions import recognise
from fgq.graph.queries import constant


def export(model: ir.Model, form: ExportForm) -> None:
    """Rewrite a converted model in place.

    Parameters
    ----------
    model : onnx_ir.Model
        A model of the packed or the int8 form.
    form : ExportForm

    Raises
    ------
    ModelError
        If the model holds no quantized weights of these forms, or a damaged one.
    """
    recognise(model)
    graph, names = model.graph, Names(model.graph)
    calls = [node for node in graph if is_unpack(node)]
    weights = [node for node in graph if _is_weight(node)]
    if not calls and not weights and not find_dynamic_products(graph):
        raise ModelError(
            "model: found no packed and no int8 weights, wanted a model converted by fgq convert"
        )
    if form is not ExportForm.INLINED:
        for node in calls:
            _replace(names, node, unpacked(node))
    if form is ExportForm.FLOAT:
        drop_dynamic(names)
        for node in [node for node in graph if _is_weight(node)]:
            _replace(names, node, _dequantized(node))
        for node in list(graph):
            _drop_quantizer(names, node)
    if form is ExportForm.FLOAT:
        model.metadata_props.pop(FORM_KEY, None)
    else:
        model.metadata_props[FORM_KEY] = form.value
    finish(model, inline=True)


def _is_weight(node: ir.Node) -> bool:
    """Tell whether a node dequantizes constants."""
    return node.op_type == "DequantizeLinear" and node.domain == "" and constant(node.inputs[0]) is not None


def _dequantized(node: ir.Node) -> NDArray[Any]:
    """Return what a DequantizeLinear makes of constants, of the type of its scale."""
    integers, scale = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.int8)
    if integers is None or scale is None or zero is None:
        raise ModelError(f"{node.name}: found scales that are computed, wanted constants")
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    try:
        scale, zero = (_spread(values, integers.shape, axis, block) for values in (scale, zero))
        centred = (integers.astype(np.float64) - zero.astype(np.float64)).astype(np.float32)
        weights = np.broadcast_to(centred * scale.astype(np.float32), integers.shape)
    except (ValueError, IndexError) as error:
        raise ModelError(
            f"{node.name}: found scales that do not fit integers of shape {list(integers.shape)} ({error})"
        ) from None
    return weights.astype(scale.dtype)


def _spread(values: NDArray[Any], shape: Sequence[int], axis: int, block: int) -> NDArray[Any]:
    """Return scales or zero points, one for all, for each channel or for each block, as they broadcast."""
    if values.size == 1:
        return values.reshape(())
    if block:
        return np.repeat(values, block, axis).take(range(shape[axis]), axis)
    along = [1] * len(shape)
    along[axis] = -1
    return values.reshape(along)


def _replace(names: Names, node: ir.Node, array: ArrayLike) -> None:
    """Put a constant in the place of a node."""
    output = node.outputs[0]
    name = str(output.name)
    names.rename(output, f"{name}_computed")
    redirect(output, add_initializer(names, name, array))
    names.graph.remove(node, safe=True)


def _drop_quantizer(names: Names, node: ir.Node) -> None:
    """Let the readers of a dequantized activation read the float tensor behind its quantizer."""
    if node.op_type != "DequantizeLinear" or node.domain != "":
        return
    producer = None if node.inputs[0] is None else node.inputs[0].producer()
    if producer is not None and (producer.domain, producer.op_type) == ("", "Clip"):
        producer = None if producer.inputs[0] is None else producer.inputs[0].producer()
    if producer is None or (producer.domain, producer.op_type) != ("", "QuantizeLinear"):
        return
    if producer.inputs[0] is None:
        return
    output, source = node.outputs[0], producer.inputs[0]
    if output.is_graph_output():
        copy = ir.node("Identity", [source], name=f"{node.name}_copy")
        names.graph.insert_after(node, [copy])
        redirect(output, copy.outputs[0])
        take_name(names, output, copy.outputs[0], "_dequantized")
    else:
        redirect(output, source)
