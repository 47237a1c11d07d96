"""Where a converted model departs from its float model: the error of each layer on real activations."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.converters.original import Original, run
from fgq.converters.passes import prepare
from fgq.converters.passes.move_scales import repeat_moves
from fgq.converters.reader import read_float_model
from fgq.converters.self_check import onnxruntime_session
from fgq.data.inputs import input_specs
from fgq.data.sources import Source, as_batches
from fgq.errors import ModelError, first_line
from fgq.format import container, onnx_file
from fgq.format.container import SCALED_KEY
from fgq.quantization.weights import decibels

OPERATORS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})

BATCH = 16
"""Samples that are run together, where the model leaves the batch size open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """The error of one tensor, accumulated from the model's input to it.

    Parameters
    ----------
    name : str
        The tensor.
    layer : str
        The node that computes it; ``output`` is said of the model's outputs.
    operator : str
    signal_to_noise_db : float
        ``10 log10(sum(f^2) / sum((f - c)^2))`` of float f and converted c.
    cosine : float
        The cosine between both, taken as vectors.
    """

    name: str
    layer: str
    operator: str
    signal_to_noise_db: float
    cosine: float

    def to_dict(self) -> dict[str, Any]:
        """Return the error as plain values that JSON can hold; what is not finite becomes None."""
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in asdict(self).items()
        }


class _Sums:
    """Sums over all samples from which ratio and cosine follow."""

    def __init__(self) -> None:
        self.signal = self.noise = self.product = self.power = 0.0

    def add(self, exact: NDArray[Any], found: NDArray[Any]) -> None:
        f, c = exact.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        self.signal += float(f @ f)
        self.power += float(c @ c)
        self.product += float(f @ c)
        self.noise += float((f - c) @ (f - c))

    @property
    def cosine(self) -> float:
        length = float(np.sqrt(self.signal * self.power))
        if length == 0.0:  # one is all zeros
            return 1.0 if self.noise == 0.0 else 0.0
        return self.product / length


def compare(
    float_model: str | os.PathLike[str],
    converted: str | os.PathLike[str],
    source: Source,
    progress: Callable[[int], None] | None = None,
) -> list[LayerError]:
    """Run both models on the same samples and compare every layer's result that both compute.

    Parameters
    ----------
    float_model, converted : path-like
    source : Samples, reader with ``get_next``, mapping of arrays, or iterable of feeds
        Data that fit the float model (`fgq.data.sources.as_batches`).
    progress : callable, optional
        Called with the number of samples done.

    Returns
    -------
    list of LayerError
        In the order in which the converted model computes them, its outputs last.

    Raises
    ------
    ModelError
        If a model cannot be read or run, or the two share no layer's result and no output, or what they
        share is of another shape.
    DataError
        If the data do not fit the float model.
    """
    candidate = container.load(converted)
    scaled = SCALED_KEY in candidate.metadata_props  # then layers' results are, too
    if scaled:
        reference = read_float_model(float_model)
        prepare(reference)
        repeat_moves(reference, candidate, str(converted))
    else:
        reference = onnx_file.load(float_model)
    inputs = input_specs(reference)
    shared = _shared_results(reference, candidate)
    names = [str(value.name) for value in shared]
    places = [
        ("output" if value.is_graph_output() else _layer_name(value), _operator(value)) for value in shared
    ]
    paths = (str(float_model), str(converted))
    models = (_exposing(model, names) for model in (reference, candidate))
    sessions = [onnxruntime_session(model, path) for model, path in zip(models, paths, strict=True)]
    judge = Original(float_model).open().session if scaled else None
    sums = {name: _Sums() for name in names}
    done = 0
    for feed in as_batches(source, inputs, BATCH):
        exact, found = (
            _run(session, path, names, feed) for session, path in zip(sessions, paths, strict=True)
        )
        if judge is not None:  # by the model that came in, which no pass has changed
            right = dict(zip(names, exact, strict=True)) | run(judge, feed)
            exact = [right[name] for name in names]
        for name, f, c in zip(names, exact, found, strict=True):
            if f.shape != c.shape:
                raise ModelError(
                    f"{converted}: {name}: found shape {list(c.shape)}, wanted {list(f.shape)} "
                    f"as in {float_model}, the model it was converted from"
                )
            sums[name].add(f, c)
        done += next((len(array) for array in feed.values() if array.ndim), 1)
        if progress is not None:
            progress(done)
    return [
        LayerError(
            name=name,
            layer=layer,
            operator=operator,
            signal_to_noise_db=decibels(sums[name].signal, sums[name].noise),
            cosine=sums[name].cosine,
        )
        for name, (layer, operator) in zip(names, places, strict=True)
    ]


def _shared_results(reference: ir.Model, candidate: ir.Model) -> list[ir.Value]:
    """Return the layers' results and the outputs of the candidate that the reference has by name."""
    known = {value.name: node for node in reference.graph for value in node.outputs}
    shared = [
        node.outputs[0]
        for node in candidate.graph
        if (node.op_type in OPERATORS or _is_layer(known.get(node.outputs[0].name)))
        and node.outputs[0].name in known
        and not node.outputs[0].is_graph_output()
    ]
    shared += [value for value in candidate.graph.outputs if value.name in known and _is_numeric(value)]
    if not shared:
        raise ModelError("comparison: found no layer and no output that both models have by name")
    return shared


def _is_layer(node: ir.Node | None) -> bool:
    return node is not None and node.op_type in OPERATORS


def _is_numeric(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype != ir.DataType.STRING


def _exposing(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Give the model the named values as its outputs."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.clear()
    for name in names:
        value = values[name]
        value.type = value.shape = None  # onnxruntime knows them better than the file may
        model.graph.outputs.append(value)
    return model


def _run(
    session: Any, path: str, names: Sequence[str], feed: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    try:
        return list(session.run(names, dict(feed)))
    except Exception as error:  # onnxruntime's exceptions share no other base
        raise ModelError(f"{path}: cannot run on the samples ({first_line(error)})") from None


def _layer_name(value: ir.Value) -> str:
    producer = value.producer()
    return "" if producer is None else str(producer.name)


def _operator(value: ir.Value) -> str:
    producer = value.producer()
    return "" if producer is None else producer.op_type
