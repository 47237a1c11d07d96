"""Every onnxruntime session of fgq is opened here, so that all have one set of options.

Exact
    Processors with AVX2 or AVX-512 but no VNNI add pairs of 8-bit products in saturating int16. With
    ``session.x64quantprecision`` onnxruntime multiplies unsigned weights there, which do not saturate; on
    other processors the option changes nothing. It needs weights and weight zero points that no two layers
    share, and a model without them is opened as onnxruntime opens it.
Float where the file says float
    ``session.qdq_matmulnbits_accuracy_level`` of 1 keeps the activations of a MatMul with dequantized weights
    in float, where onnxruntime would quantize them to 8 bits.
Quiet
    No log on the terminal, no telemetry.
"""

from __future__ import annotations

import os
import re

import onnxruntime

# Held from the start: programs put fgq's adapter in place of this class.
from onnxruntime import InferenceSession

from fgq.errors import ModelError, first_line

# fgq switches telemetry off before it loads onnxruntime; this is for programs that have loaded it first.
onnxruntime.disable_telemetry_events()

_PROVIDERS = ["CPUExecutionProvider"]

_EXACT = {"session.x64quantprecision": "1", "session.qdq_matmulnbits_accuracy_level": "1"}

_SHARED = "Attempt to replace the existing tensor"
"""What onnxruntime says where two layers share a weight, or its zero point, that is to be made unsigned."""


def session_options(
    *, threads: int | None = None, stock: bool = False, optimized: bool = True
) -> onnxruntime.SessionOptions:
    """Return the options of a session.

    Parameters
    ----------
    threads : int, optional
        Threads within one operator, which then do not spin between them; onnxruntime's own choice if not
        given.
    stock : bool
        Whether to leave the arithmetic as it is by default, saturation included.
    optimized : bool
        Whether onnxruntime may change the graph before it runs it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not stock:
        for key, value in _EXACT.items():
            options.add_session_config_entry(key, value)
    return options


def open_session(
    model: str | os.PathLike[str] | bytes,
    name: str,
    *,
    threads: int | None = None,
    stock: bool = False,
    optimized: bool = True,
) -> InferenceSession:
    """Load a model into onnxruntime, on the CPU.

    Parameters
    ----------
    model : path-like or bytes
        A model file, or its contents.
    name : str
        What an error calls the model.
    threads, stock, optimized
        As for `session_options`.

    Raises
    ------
    ModelError
        If onnxruntime refuses the model.
    """
    source = model if isinstance(model, bytes) else os.fspath(model)
    try:
        options = session_options(threads=threads, stock=stock, optimized=optimized)
        # its own way back from an error prints, and tries the same again
        return InferenceSession(source, options, providers=_PROVIDERS, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no other base
        if not stock and _SHARED in str(error):
            return open_session(model, name, threads=threads, stock=True, optimized=optimized)
        reason = re.sub("Load model from .* failed: ?", "", first_line(error))  # at times a temporary file
        raise ModelError(f"{name}: onnxruntime refuses it ({reason})") from None
