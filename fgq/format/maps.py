"""Types that are maps, as ZipMap makes: onnxruntime has them, `onnx_ir` does not."""

from __future__ import annotations

import onnx


def holds_map(kind: onnx.TypeProto) -> bool:
    """Tell whether values of a type are maps, or hold some.

    Parameters
    ----------
    kind : onnx.TypeProto
    """
    inner = kind.WhichOneof("value")
    if inner in ("sequence_type", "optional_type"):
        return holds_map(getattr(kind, inner).elem_type)
    return bool(inner == "map_type")


def forget_maps(graph: onnx.GraphProto) -> None:
    """Remove what a graph says of values between its nodes that are maps.

    Parameters
    ----------
    graph : onnx.GraphProto
        Changed in place.
    """
    kept = [value for value in graph.value_info if not holds_map(value.type)]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)
