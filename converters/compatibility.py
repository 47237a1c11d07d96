"""The oldest onnxruntime that runs a converted file."""

from __future__ import annotations

import onnx_ir as ir

from fgq.config import Form


def minimum_onnxruntime(model: ir.Model, form: Form) -> str:
    """Placeholder until measured."""
    return "1.26"
