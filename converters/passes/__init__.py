"""Passes over the float graph that bring it to the one shape that the rest of the converter knows.

Each pass is one file and one class; its docstring lists its rules.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from fgq.converters.passes.constant_shape import ConstantShape
from fgq.converters.passes.explicit_zero_points import ExplicitZeroPoints
from fgq.converters.passes.fold_batch_norm import FoldBatchNorm
from fgq.converters.passes.fold_constants import FoldConstants
from fgq.converters.passes.mean_to_pool import MeanToPool
from fgq.converters.passes.plain_gemm import PlainGemm
from fgq.converters.passes.plain_pools import PlainPools
from fgq.converters.passes.sum_to_add import SumToAdd
from fgq.errors import ModelError, SizeError, first_line, unexpected
from fgq.format import onnx_file
from fgq.format.geometry import check_geometry
from fgq.format.shapes import InferShapes

__all__ = [
    "ConstantShape",
    "ExplicitZeroPoints",
    "FoldBatchNorm",
    "FoldConstants",
    "MeanToPool",
    "PlainGemm",
    "PlainPools",
    "SumToAdd",
    "passes",
    "prepare",
]


def passes() -> list[ir.passes.PassBase]:
    """Return what `prepare` does to a model, in order."""
    return [
        common.InlinePass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        FoldConstants(),
        SumToAdd(),
        InferShapes(),
        PlainPools(),
        MeanToPool(),
        ConstantShape(),
        FoldBatchNorm(),
        PlainGemm(),
        common.RemoveUnusedNodesPass(),
        common.NameFixPass(),
    ]


def prepare(model: ir.Model) -> None:
    """Bring a float model, in place, to the shape in which layers are looked for.

    Afterwards functions are inlined, every constant is an initializer of the main graph, layout operators
    on constants are gone, shapes of Reshape are constants where one axis at most is open, means over
    pixels are poolings, ceil_mode stands where it adds windows, batch normalization is folded into the
    convolutions before it, Gemm has alpha = beta = 1 and a bias of one axis, every node has a name that
    no other node of its graph has, and shapes are inferred.

    Parameters
    ----------
    model : onnx_ir.Model
        Of opset 13 or later.

    Raises
    ------
    ModelError
        If the graph contradicts itself: weights that do not fit their operator, a function that calls itself.
    SizeError
        If its sizes cannot be meant, or its constants become too large.
    """
    for step in passes():
        try:
            step(model)
        except Exception as error:
            cause = onnx_file.root(error)
            if isinstance(cause, SizeError):
                raise cause from None
            if isinstance(cause, MemoryError):
                raise unexpected("model", cause, SizeError) from error
            reason = first_line(cause)
            raise ModelError(
                f"model: the graph is malformed, or the pass {type(step).__name__} wrong ({reason})"
            ) from error
    check_geometry(model, "model", inferred=True)
