"""Gather what a report says of a conversion: quality, size, cost, and every layer's share in the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from fgq.converters.compatibility import minimum_onnxruntime
from fgq.converters.original import Original
from fgq.converters.passes import prepare
from fgq.converters.passes.move_scales import repeat_moves
from fgq.converters.reader import read_float_model
from fgq.converters.survey import model_bytes
from fgq.data.calibration import observe
from fgq.data.feed import Feed
from fgq.data.inputs import InputSpec, input_specs
from fgq.data.samples import Samples
from fgq.data.sources import as_batches
from fgq.eval.compare import BATCH, compare
from fgq.eval.datasets import open_dataset
from fgq.eval.report.histograms import (
    ActivationHistogram,
    WeightHistogram,
    activation_histogram,
    weight_histogram,
)
from fgq.eval.report.layer_rows import QuantizedLayer, ReportedLayer, pair_layers
from fgq.eval.report.provenance import Provenance, provenance
from fgq.eval.report.quality import Quality, measure_quality
from fgq.eval.report.sensitivity import Sensitivity
from fgq.format import container, onnx_file
from fgq.plan.options import memory_bits
from fgq.quantization.mmse import StreamingHistogram
from fgq.quantization.scheme import WeightScheme
from fgq.report import LayerReport, Report
from fgq.support.progress import Progress

FLOAT_BITS = 32.0

LAYER_SAMPLES = 64
"""Layers are measured on the first samples, so many at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerFindings:
    """What is known of one layer.

    Parameters
    ----------
    report : LayerReport
        Its signal-to-noise ratio is that of the weights.
    scheme : WeightScheme or None
        None for float layers.
    memory_bits : float
        Bits of a weight as kernels hold it (`fgq.plan.options.memory_bits`), which ``--target-bits`` counts.
    sensitivity : float or None
        How far the model's outputs move when it alone is quantized (`fgq.eval.report.sensitivity`); None
        for float layers and those in subgraphs.
    signal_to_noise_db : float or None
        Of its result in the converted model, errors of earlier layers included (`fgq.eval.compare`); None
        where the two models have no such tensor in common.
    weights : WeightHistogram or None
        None for float layers.
    activations : ActivationHistogram or None
        None for float layers and those in subgraphs.
    """

    report: LayerReport
    scheme: WeightScheme | None
    memory_bits: float
    sensitivity: float | None
    signal_to_noise_db: float | None
    weights: WeightHistogram | None
    activations: ActivationHistogram | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """What a report says.

    Parameters
    ----------
    float_model, converted, data : str
        As they were given.
    report : Report
        Sizes and layers of the conversion.
    quality : Quality
    is_classifier : bool
        Whether the data have labels: then sensitivities are divergences in nats, else relative errors.
    layer_samples : int
        Samples on which layers were measured.
    layers : tuple of LayerFindings
        In graph order, those of `report`.
    float_bytes : int
        What float constants take in the converted file: embeddings, float layers, scales.
    whole : float
        The sensitivity of the model to all that was done to it.
    provenance : Provenance
    """

    float_model: str
    converted: str
    data: str
    report: Report
    quality: Quality
    is_classifier: bool
    layer_samples: int
    layers: tuple[LayerFindings, ...]
    float_bytes: int
    whole: float
    provenance: Provenance


def study(
    float_model: Path,
    converted: Path,
    data: str,
    *,
    limit: int | None,
    command: Iterable[str],
    progress: Progress,
) -> Findings:
    """Measure a float model and the one that was converted from it.

    Parameters
    ----------
    float_model, converted : Path
    data : str
        As for `fgq.eval.datasets.open_dataset`; of data sets known by name the test part.
    limit : int or None
        Only so many samples, the first ones.
    command : iterable of str
        What the report says it was made by, word by word.
    progress : callable
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    FgqError
        If a model or the data cannot be used, or one model was not converted from the other.
    """
    candidate = container.load(converted)
    origins = provenance(command, {float_model: onnx_file.load(float_model), converted: candidate}, data)
    original, model = Original(float_model), read_float_model(float_model)
    float_bytes = model_bytes(float_model, model)
    prepare(model)
    repeat_moves(model, candidate, str(converted))
    found = pair_layers(model, candidate)
    pairs = [entry.quantized for entry in found if entry.quantized is not None]

    samples = open_dataset(data, float_model, "test")
    feeds = _first_batches(samples, input_specs(model), limit)
    count = sum(len(next(iter(feed.values()))) for feed in feeds)
    is_classifier = samples.labels is not None
    sensitivity = Sensitivity(model, feeds, classifier=is_classifier)
    moved = sensitivity.of_layers(pairs, candidate, partial(progress, "sensitivity"))
    seen = _observe(model, pairs, feeds, progress)
    errors = {
        error.name: error.signal_to_noise_db
        for error in compare(
            float_model, converted, feeds, lambda done: progress("compare layers", done, count)
        )
    }
    layers = tuple(_findings(entry, moved, errors, seen) for entry in found)
    return Findings(
        float_model=str(float_model),
        converted=str(converted),
        data=data,
        report=Report(
            options={},
            layers=tuple(layer.report for layer in layers),
            float_bytes=float_bytes,
            converted_bytes=model_bytes(converted, candidate),
            minimum_onnxruntime=minimum_onnxruntime(candidate),
        ),
        quality=measure_quality((float_model, converted), data, samples, limit, progress),
        is_classifier=is_classifier,
        layer_samples=count,
        layers=layers,
        float_bytes=_float_bytes(candidate),
        whole=sensitivity.of_model(candidate, original),
        provenance=origins,
    )


def _float_bytes(model: ir.Model) -> int:
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point())


def _first_batches(samples: Samples, inputs: Sequence[InputSpec], limit: int | None) -> list[Feed]:
    """Return about LAYER_SAMPLES samples in whole batches, where the model fixes their size."""
    fixed = next((spec.fixed_batch for spec in inputs if spec.fixed_batch is not None), 1)
    count = max(LAYER_SAMPLES // fixed, 1) * fixed
    return list(as_batches(samples.first(count if limit is None else min(limit, count)), inputs, BATCH))


def _observe(
    model: ir.Model, pairs: Sequence[QuantizedLayer], feeds: Sequence[Feed], progress: Progress
) -> dict[str, StreamingHistogram]:
    names = [str(pair.layer.activation.name) for pair in pairs if not pair.layer.in_subgraph]
    return observe(model, names, feeds, progress=lambda done, total: progress("activations", done, total))


def _findings(
    entry: ReportedLayer,
    moved: Mapping[ir.Node, float | None],
    errors: Mapping[str, float],
    seen: Mapping[str, StreamingHistogram],
) -> LayerFindings:
    pair, error = entry.quantized, errors.get(entry.result)
    if pair is None:
        return LayerFindings(
            report=entry.report,
            scheme=None,
            memory_bits=FLOAT_BITS,
            sensitivity=None,
            signal_to_noise_db=error,
            weights=None,
            activations=None,
        )
    tensor = pair.weight
    values = seen.get(str(pair.layer.activation.name))
    return LayerFindings(
        report=entry.report,
        scheme=tensor.scheme,
        memory_bits=memory_bits(tensor.scheme, tensor.shape[tensor.group_axis]),
        sensitivity=moved[pair.layer.node],
        signal_to_noise_db=error,
        weights=weight_histogram(pair.layer.weight_array, tensor),
        activations=None if values is None else activation_histogram(values, pair.quantizer),
    )
