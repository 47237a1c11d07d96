"""Observing a model's activations on calibration data, and choosing their quantizers.

The chain: run the float model in onnxruntime -> one histogram a tensor -> one quantizer a tensor.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from fgq.data.feed import Feed
from fgq.data.inputs import InputSpec, input_specs
from fgq.data.samples import Samples, as_samples
from fgq.data.sources import Source, as_batches
from fgq.errors import DataError, FgqError, ModelError, OutputError
from fgq.graph import ort
from fgq.quantization.magnitudes import FAR, few_values, peaks_of, percentile_without, standing_out
from fgq.quantization.mmse import StreamingHistogram
from fgq.quantization.scheme import Quantizer
from fgq.support.temporary import temporary_folder

OBSERVED_BYTES = 1 << 27
"""Observed activations held at once, in bytes; onnxruntime holds about as much again while it runs."""

_FLOAT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(double)")


def observe(
    model: ir.Model,
    tensors: Iterable[str],
    source: Source,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int | None], None] | None = None,
    percentile: float | None = None,
) -> dict[str, StreamingHistogram]:
    """Run a model on calibration data and count the values of some of its tensors.

    Memory does not grow with the data: batches are streamed through onnxruntime (CPU) into histograms of
    fixed size. All tensors are observed in one pass, so a source that can be read only once will do.

    Parameters
    ----------
    model : onnx_ir.Model
        Left as it is; its weights are written once to a temporary folder, whatever their size.
    tensors : iterable of str
        Names of float tensors of the main graph: inputs of the model or outputs of nodes.
    source : Samples, reader with ``get_next``, mapping of arrays, or iterable of feeds
        The calibration data (`fgq.data.sources.as_batches`).
    batch_size : int
        Most samples to run at a time. Of samples and arrays fewer are taken where the observed tensors
        would exceed OBSERVED_BYTES, which changes no count; feeds are run as they are.
    progress : callable, optional
        Called after each batch with the samples done and their total, None if that is unknown.
    percentile : float, optional
        What share of the values ranges are to hold, in percent (`fgq.quantization.mmse.StreamingHistogram`).

    Returns
    -------
    dict of str to StreamingHistogram
        In the order of `tensors`.

    Raises
    ------
    ModelError
        If a tensor is unknown, constant, inside a subgraph or not of floats, or onnxruntime refuses the
        model.
    DataError
        If the data do not fit the model or make an activation NaN or infinite.
    OutputError
        If there is no room for the model in the temporary folder.
    """
    inputs = input_specs(model)
    histograms = {name: StreamingHistogram(name, percentile) for name in tensors}
    _check_tensors(model, histograms, inputs)
    fed = {spec.name for spec in inputs}
    computed = [name for name in histograms if name not in fed]
    if isinstance(source, Mapping):
        source = as_samples(source, inputs)
    total = len(source) if isinstance(source, Samples) else None
    done = 0
    with _session(model, computed) as session:
        if isinstance(source, Samples):
            batch_size = _fitting_batch(session, computed, source, inputs, batch_size)
        for feed in as_batches(source, inputs, batch_size):
            count = next((len(array) for array in feed.values() if array.ndim), 1)
            for name, values in (feed | _run(session, computed, feed)).items():
                if name in histograms:
                    histograms[name].update(values)
                    histograms[name].peaks.extend(peaks_of(values, done, count))
            done += count
            if progress is not None:
                progress(done, total)
    return histograms


def tensor_values(
    model: ir.Model, tensors: Sequence[str], feeds: Iterable[Feed]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Run a model and yield the values of some of its tensors, feed by feed.

    Parameters
    ----------
    model : onnx_ir.Model
        Left as it is.
    tensors : sequence of str
        Names of float tensors of the main graph: inputs of the model or outputs of nodes.
    feeds : iterable of feed

    Raises
    ------
    FgqError
        As `observe`.
    """
    inputs = input_specs(model)
    _check_tensors(model, tensors, inputs)
    fed = {spec.name for spec in inputs}
    computed = [name for name in dict.fromkeys(tensors) if name not in fed]
    with _session(model, computed) as session:
        for feed in feeds:
            values = feed | _run(session, computed, feed)
            yield {name: values[name] for name in tensors}


def range_warnings(
    histograms: Mapping[str, StreamingHistogram], quantizers: Mapping[str, Quantizer]
) -> Iterator[str]:
    """Say which tensors' ranges a few samples or values have set that are far beyond all others.

    Parameters
    ----------
    histograms : mapping of str to StreamingHistogram
        What was observed, by tensor name.
    quantizers : mapping of str to Quantizer
        What was chosen for them.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for name, quantizer in quantizers.items():
        fault = _fault(histograms[name], quantizer)
        if fault is not None:
            found.setdefault(fault[0], (fault[1], []))[1].append(name)
    for cause, (advice, names) in found.items():
        others = f" (and of {len(names) - 1} more: {', '.join(names[1:4])}" if len(names) > 1 else ""
        others += ", ..)" if len(names) > 4 else ")" if others else ""
        yield f"tensor {names[0]}: its range{others} is set by {cause}; {advice}"


def _fault(histogram: StreamingHistogram, quantizer: Quantizer) -> tuple[str, str] | None:
    """Return what few samples or values make a range as wide as it is, and what follows."""
    limit = quantizer.scale * max(quantizer.zero_point, quantizer.highest - quantizer.zero_point)
    limit = min(limit, max(histogram.maximum, -histogram.minimum))
    found = standing_out(histogram.peaks, limit)
    if found is not None:
        few, rest = found
        which = ", ".join(map(str, few[:3])) + (", .." if len(few) > 3 else "")
        cause, far = f"{which} of {sum(peak.samples for peak in histogram.peaks)}", histogram.beyond(rest)
    else:
        rest = limit / (2 * FAR)
        far = histogram.beyond(rest)
        if not few_values(far, histogram.count):
            return None
        largest = max(histogram.peaks, key=lambda peak: peak.largest, default=None)
        cause = f"{far} of its values" + ("" if largest is None else f", in {largest}")
    percentile = percentile_without(far / histogram.count)
    return cause, (
        f"it reaches to {limit:.3g}, where all others stay below {rest:.3g} and have few levels left; take "
        f"what is wrong out of the data, or try --range percentile:{percentile:g}"
    )


def _check_tensors(model: ir.Model, names: Iterable[str], inputs: Sequence[InputSpec]) -> None:
    inner = {
        value.name for node in ir.traversal.RecursiveGraphIterator(model.graph) for value in node.outputs
    }
    computed = {value.name for node in model.graph for value in node.outputs}
    for name in names:
        if name in model.graph.initializers:
            raise ModelError(f"tensor {name!r}: found a constant, wanted an activation")
        if name in computed or any(spec.name == name for spec in inputs):
            continue
        found = "it inside a subgraph" if name in inner else "no such tensor"
        raise ModelError(f"tensor {name!r}: found {found}, wanted one of the main graph")
    for spec in inputs:
        if spec.name in names and spec.dtype.kind != "f":
            raise ModelError(f"tensor {spec.name!r}: found {spec.dtype} values, wanted floats")


@contextlib.contextmanager
def _session(model: ir.Model, computed: Sequence[str]) -> Iterator[InferenceSession]:
    """Open a session of the model with further outputs."""
    with temporary_folder() as folder:
        path = folder / "observed.onnx"
        try:
            ir.save(_with_outputs(model, computed), path, external_data="weights.bin")
            session = ort.open_session(path, "model")
        except OSError as error:
            raise OutputError(
                f"temporary file {path}: cannot be written ({error.strerror or error})"
            ) from None
        except FgqError:
            raise
        except Exception as error:  # onnx_ir's, of a graph with a loose end
            raise ModelError(f"model: onnxruntime refuses it ({_one_line(error)})") from None
        for output in session.get_outputs():
            if output.name in computed and output.type not in _FLOAT_TYPES:
                raise ModelError(f"tensor {output.name!r}: found {output.type}, wanted a tensor of floats")
        yield session


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy of the model, its weights shared, that also puts out the named tensors."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    present = {value.name for value in copy.graph.outputs}
    copy.graph.outputs.extend(values[name] for name in names if name not in present)
    return copy


def _fitting_batch(
    session: InferenceSession,
    computed: Sequence[str],
    samples: Samples,
    inputs: Sequence[InputSpec],
    batch_size: int,
) -> int:
    """Return how many samples, of the size of the first, keep the observed tensors in OBSERVED_BYTES."""
    first = next(as_batches(samples, inputs, 1))
    held = sum(array.nbytes for array in _run(session, computed, first).values())
    return min(batch_size, max(1, OBSERVED_BYTES // max(held, 1)))


def _run(session: InferenceSession, computed: Sequence[str], feed: Feed) -> dict[str, NDArray[Any]]:
    if not computed:  # an empty list would ask for every output
        return {}
    try:
        return dict(zip(computed, session.run(computed, feed), strict=True))
    except Exception as error:  # onnxruntime's exceptions share no other base
        shapes = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in feed.items())
        raise DataError(
            f"calibration data: found a batch that onnxruntime cannot run ({_one_line(error)}): {shapes}; "
            "wanted inputs that the model accepts"
        ) from None


def _one_line(error: Exception) -> str:
    return textwrap.shorten(str(error), 400) or type(error).__name__
