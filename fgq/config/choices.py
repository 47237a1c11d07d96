"""What options of a conversion choose from."""

from __future__ import annotations

from enum import StrEnum


class Activations(StrEnum):
    """How activations are held between layers."""

    INT8 = "int8"
    INT4 = "int4"
    INT8_DYNAMIC = "int8-dynamic"
    """What MatMul and Gemm read; ranges of whole tensors, found at run time."""
    INT8_DYNAMIC_TOKEN = "int8-dynamic-token"
    """The same with a range for each row along the last axis."""
    NONE = "none"


class Step(StrEnum):
    """A step of the recipes that look at data, see docs/recipes.md."""

    TARGET = "target"
    """Quantize what serves the inputs as they now are, in place of the float weights."""
    RESIDUAL = "residual"
    """Make up for what the value that a result is added to has lost."""
    FEEDBACK = "feedback"
    """Let the weights not yet quantized make up for those that are."""
    DESCENT = "descent"
    """Sweep over codes and scales under the input covariance."""
    BIAS = "bias"
    """Correct biases, and then judge weights by what no bias can make up for."""


class Form(StrEnum):
    """How the weights are written, see docs/architecture.md."""

    PACKED = "packed"
    INT8 = "int8"
    INLINED = "inlined"


class ExportForm(StrEnum):
    """What a converted model is written as."""

    INT8 = "int8"
    """Quantize and dequantize nodes around int8 weights, for any engine that knows these."""
    INLINED = "inlined"
    """As packed, with the function's operators in its place."""
    FLOAT = "float"
    """Float operators and weights alone; the weights keep their quantized values."""


class Misfit(StrEnum):
    """What to do with a layer whose reduction axis is no multiple of the group size."""

    ERROR = "error"
    RAGGED = "ragged"
    SMALLER = "smaller"
