"""Convert pretrained ONNX models to ternary weights with fine-grained scales, and run them."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgq.config import ConversionConfig
    from fgq.conversion.pipeline import Conversion, convert, convert_file
    from fgq.errors import FgqError
    from fgq.quantization.scheme import ActivationScheme, Codes, WeightScheme
    from fgq.runtime import Session

# Importing onnxruntime starts its telemetry, which leaves a device id in the user's folder of caches: this is
# read at that moment alone.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__all__ = [
    "ActivationScheme",
    "Codes",
    "Conversion",
    "ConversionConfig",
    "FgqError",
    "Session",
    "WeightScheme",
    "convert",
    "convert_file",
]

_HOMES = {
    "ActivationScheme": "fgq.quantization.scheme",
    "Conversion": "fgq.conversion.pipeline",
    "ConversionConfig": "fgq.config",
    "FgqError": "fgq.errors",
    "Codes": "fgq.quantization.scheme",
    "Session": "fgq.runtime",
    "WeightScheme": "fgq.quantization.scheme",
    "convert": "fgq.conversion.pipeline",
    "convert_file": "fgq.conversion.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import fgq`` stays light."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fgq' has no attribute {name!r}")
