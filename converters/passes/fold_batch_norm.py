"""Fold batch normalization, and per-channel affine steps after it, into the convolution before.

With mean mu, variance v, gain gamma and shift beta of each output channel, the convolution
``W x + b`` followed by batch normalization is the convolution ``r W x + (b - mu) r + beta`` with
``r = gamma / sqrt(v + epsilon)``.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.rewriting import Names, add_initializer, redirect, take_name
from fgq.graph.queries import constant, sole_reader

Affine = tuple[NDArray[np.float64], NDArray[np.float64]]


class FoldBatchNorm(ir.passes.InPlacePass):
    """Fold BatchNormalization, and Mul and Add by a constant per channel, into Conv.

    1. Only a step that alone reads the result of the convolution, in the same graph.
    2. BatchNormalization in inference mode (one output, training_mode = 0) with constant parameters.
    3. Mul and Add whose other operand is a constant of shape [C, 1, ..] or [1, C, 1, ..] with a 1 for each
       spatial axis, as Caffe's Scale layer is exported.
    4. Not where finite numbers would exceed their type, as those of float16 soon do.
    5. Weights and bias become new initializers, as others may share the old ones; the result keeps the
       name of the last folded step.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the pass in place."""
        modified, names = False, Names(model.graph)
        for conv in list(model.graph.all_nodes()):
            if conv.op_type == "Conv" and conv.domain == "":
                while _fold_next(names, conv):
                    modified = True
        return ir.passes.PassResult(model, modified)


def _fold_next(names: Names, conv: ir.Node) -> bool:
    weight = constant(conv.inputs[1])
    bias_value = conv.inputs[2] if len(conv.inputs) > 2 else None
    bias = constant(bias_value)
    step = sole_reader(conv.outputs[0])
    if weight is None or (bias_value is not None and bias is None) or step is None:
        return False
    if step.graph is not conv.graph:
        return False
    affine = _affine(step, conv.outputs[0], (weight.shape[0], *[1] * (weight.ndim - 2)))
    if affine is None:
        return False
    gain, shift = affine
    folded = weight * gain.reshape(-1, *[1] * (weight.ndim - 1))
    total = (np.zeros(1) if bias is None else bias) * gain + shift
    with np.errstate(over="ignore"):
        results = folded.astype(weight.dtype), total.astype(weight.dtype)
    finite = all(np.isfinite(array).all() for array in (folded, total))
    if finite and not all(np.isfinite(array).all() for array in results):
        return False
    conv.resize_inputs(3)
    for place, array in enumerate(results, 1):
        what = ("weight", "bias")[place - 1]
        conv.replace_input_with(place, add_initializer(names, f"{conv.name}.{what}", array))
    redirect(step.outputs[0], conv.outputs[0])
    take_name(names, step.outputs[0], conv.outputs[0], "_unfolded")
    home = step.graph
    assert home is not None
    home.remove(step, safe=True)
    return True


def _affine(step: ir.Node, value: ir.Value, channels: tuple[int, ...]) -> Affine | None:
    """Return gain and shift of each channel, or None where the step is not a constant affine one.

    `channels` is the shape of a constant per channel, without the batch axis.
    """
    if step.domain != "":
        return None
    if step.op_type == "BatchNormalization" and step.inputs[0] is value:
        parameters = [constant(parameter) for parameter in step.inputs[1:]]
        # Before opset 14 further outputs, read or not, are what says that it trains.
        training = step.attributes.get_int("training_mode", 0) or len(step.outputs) > 1
        if training or any(parameter is None for parameter in parameters):
            return None
        gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
        with np.errstate(invalid="ignore", divide="ignore"):  # weights of NaN are refused by their layer
            gain = gamma / np.sqrt(variance + step.attributes.get_float("epsilon", 1e-5))
        return gain, beta - mean * gain
    if step.op_type in ("Mul", "Add"):
        other = constant(step.inputs[1] if step.inputs[0] is value else step.inputs[0])
        if other is None or other.shape not in (channels, (1, *channels)):
            return None
        row = other.reshape(-1).astype(np.float64)
        return (row, np.zeros_like(row)) if step.op_type == "Mul" else (np.ones_like(row), row)
    return None
