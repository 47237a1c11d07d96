"""The files that are timed: a model, what fgq makes of it, and its int8 models by onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from fgq.config import ConversionConfig, ExportForm, Recipe
from fgq.conversion.files import export_file
from fgq.conversion.pipeline import convert_file
from fgq.conversion.prepared import CALIBRATION_BATCH
from fgq.data.feed import Feed
from fgq.data.inputs import InputSpec, input_specs
from fgq.data.samples import Samples, as_samples
from fgq.data.sources import as_batches
from fgq.errors import ConfigError, DataError, FgqError, first_line
from fgq.eval import characters
from fgq.eval.datasets import CHARACTERS, open_dataset
from fgq.format import onnx_file
from fgq.format.container import FORM_KEY
from fgq.graph import ort
from fgq.support.progress import Progress

FLOAT, INT8, DYNAMIC = "float", "int8", "dynamic int8"
"""Forms of a model: as it was; statically and dynamically quantized by onnxruntime."""

CALIBRATION_SAMPLES = 128
"""Samples that both quantizers see; speed asks for no more."""

TOKENS = 128
"""Tokens of each text that minilm is given."""

_IMAGES = 32
_CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model to be timed, and data for it.

    Parameters
    ----------
    name : str
        What reports call it.
    path : Path
    samples : Samples
        To calibrate with; the first ones are what is timed.
    note : str
        What a reader of its figures must know.
    """

    name: str
    path: Path
    samples: Samples
    note: str = ""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What the model says about its inputs."""
        return input_specs(onnx_file.load(self.path))

    @property
    def is_converted(self) -> bool:
        """Whether fgq has converted the model already."""
        return FORM_KEY in onnx_file.load(self.path).metadata_props

    def feed(self, batch: int | None) -> Feed:
        """Return the first samples.

        Parameters
        ----------
        batch : int or None
            How many; None for as many as the model's fixed batch, or one.

        Raises
        ------
        ConfigError
            If the model has another fixed batch.
        DataError
            If there are fewer.
        """
        inputs = self.inputs
        fixed = next((spec.fixed_batch for spec in inputs if spec.fixed_batch is not None), None)
        if None not in (batch, fixed) and batch != fixed:
            raise ConfigError(
                f"batch: found {batch}, wanted {fixed}, to which the inputs of {self.name} are fixed"
            )
        size = batch or fixed or 1
        if len(self.samples) < size:
            raise DataError(f"{self.name}: found {len(self.samples)} samples, wanted a batch of {size}")
        return next(as_batches(self.samples.first(size), inputs, size))


def open_subject(model: str, data: str | None, folder: Path) -> Subject:
    """Open a model by its name or path.

    Parameters
    ----------
    model : str
        A file, or one of `BUILT_IN`. A file is taken before a built-in model of that name.
    data : str or None
        Samples of its input, as for `fgq.eval.datasets.open_dataset`; built-in models bring their own.
    folder : Path
        Where to write a built-in model.

    Raises
    ------
    ConfigError
        If there is no such model, or a package for it is not installed.
    DataError
        If a file is given without data, or data do not fit.
    """
    if Path(model).is_file():
        if data is None:
            raise DataError(
                f"{model}: found no data for it, wanted samples of its input to calibrate and to time with: "
                "give --calibration DATA"
            )
        path = Path(model)
        return Subject(name=path.name, path=path, samples=_limited(open_dataset(data, path, "calibration")))
    if model not in BUILT_IN:
        raise ConfigError(
            f"{model}: found no such file, wanted an ONNX model or one of {', '.join(BUILT_IN)}"
        )
    subject = BUILT_IN[model](folder / f"{model}.onnx")
    if data is None:
        return subject
    samples = _limited(open_dataset(data, subject.path, "calibration"))
    return Subject(name=subject.name, path=subject.path, samples=samples, note=subject.note)


def _limited(samples: Samples) -> Samples:
    return samples.first(CALIBRATION_SAMPLES)


def _resnet50(path: Path) -> Subject:
    from fgq.eval.topologies import resnet50
    from fgq.eval.torch_export import save_onnx

    save_onnx(resnet50().export(), path)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((_IMAGES, 3, 224, 224), np.float32)
    samples = as_samples({"pixel_values": images}, input_specs(onnx_file.load(path)))
    return Subject(
        name="resnet50", path=path, samples=samples, note="random weights and images: it knows nothing, "
        "so that its speed is measured and nothing is said about its accuracy",
    )  # fmt: skip


def _cnn(path: Path) -> Subject:
    samples = _limited(open_dataset(CHARACTERS, characters.MODEL, "calibration"))
    return Subject(
        name="cnn", path=characters.MODEL, samples=samples, note="the bundled network, 32 x 32 images"
    )


def _minilm(path: Path) -> Subject:
    from fgq.eval.docstrings import docstring_pairs
    from fgq.eval.minilm import export_minilm, tokenize
    from fgq.eval.torch_export import save_onnx

    save_onnx(export_minilm(), path)
    tokens = tokenize(docstring_pairs().calibration)
    known = tokens["input_ids"][tokens["attention_mask"] == 1]
    rows = known[: TOKENS * min(known.size // TOKENS, CALIBRATION_SAMPLES)].reshape(-1, TOKENS)
    arrays = {
        "input_ids": rows,
        "attention_mask": np.ones_like(rows),
        "token_type_ids": np.zeros_like(rows),
    }
    samples = as_samples(arrays, input_specs(onnx_file.load(path)))
    return Subject(name="minilm", path=path, samples=samples, note=f"all-MiniLM-L6-v2, {TOKENS} tokens")


BUILT_IN: dict[str, Callable[[Path], Subject]] = {"resnet50": _resnet50, "cnn": _cnn, "minilm": _minilm}
"""Models that need no file, and what makes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """The files of one model.

    Parameters
    ----------
    converted : dict of int or None to Path
        By group size; None where it is not known.
    others : dict of str to Path
        By form: `FLOAT`, `INT8`, `DYNAMIC`.
    missing : dict of str to str
        Forms that could not be made, and why.
    """

    converted: dict[int | None, Path] = field(default_factory=dict)
    others: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def make_forms(subject: Subject, group_sizes: Sequence[int], folder: Path, progress: Progress) -> Forms:
    """Make all that can be made of a model.

    A float model is converted for each group size, by the recipe that takes least time, and quantized by
    onnxruntime on the same data: statically, as quantize and dequantize nodes with uint8 activations and
    int8 weights per channel; and dynamically where it has no convolution, for those are slow so. Of a
    converted model its own int8 and float form are written.

    Parameters
    ----------
    subject : Subject
    group_sizes : sequence of int
    folder : Path
        Where to write.
    progress : callable
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    FgqError
        If fgq cannot convert the model.
    """

    def stage(name: str) -> Progress:
        return lambda step, done, total: progress(f"{subject.name}: {name}: {step}", done, total)

    if subject.is_converted:
        exported = {FLOAT: folder / "float.onnx", INT8: folder / "int8.onnx"}
        for form, path in exported.items():
            progress(f"{subject.name}: export {form}", 0, None)
            export_file(subject.path, path, ExportForm(form))
        return Forms(converted={None: subject.path}, others=exported)

    forms = Forms(others={FLOAT: subject.path})
    for size in dict.fromkeys(group_sizes):
        path = folder / f"ternary{size}.onnx"
        config = ConversionConfig(group_size=size, recipe=Recipe.FGQ)
        convert_file(subject.path, path, config, subject.samples, stage(f"N={size}"))
        forms.converted[size] = path
    quantizers: dict[str, Callable[[Subject, Path], None]] = {INT8: _quantize_static}
    if not any(node.op_type in _CONVOLUTIONS for node in onnx_file.load(subject.path).graph.all_nodes()):
        quantizers[DYNAMIC] = _quantize_dynamic
    for form, quantize in quantizers.items():
        progress(f"{subject.name}: onnxruntime {form}", 0, None)
        path = folder / f"{form.replace(' ', '_')}.onnx"
        try:
            quantize(subject, path)
        except FgqError:
            raise
        except Exception as error:  # the quantizers raise whatever they meet
            forms.missing[form] = first_line(error)
        else:
            forms.others[form] = path
    return forms


class _Reader:
    """What onnxruntime's calibration takes its data from."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def _quantize_static(subject: Subject, path: Path) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("prepared.onnx")
    # without its symbolic shape inference, which wants sympy and adds nothing where inputs are calibrated
    quant_pre_process(str(subject.path), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(path),
        _Reader(as_batches(subject.samples, subject.inputs, CALIBRATION_BATCH)),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,  # on x86 much faster than int8
        weight_type=QuantType.QInt8,
        reduce_range=ort.saturates(),  # what onnxruntime's guide asks for on such processors
    )


def _quantize_dynamic(subject: Subject, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(subject.path),
        str(path),
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=ort.saturates(),
    )


def fix_shapes(source: Path, feed: Feed, destination: Path) -> None:
    """Write a model with the lengths of its inputs' axes fixed, for all engines plan better so.

    Parameters
    ----------
    source : Path
    feed : dict of str to ndarray
        Arrays of these lengths.
    destination : Path
    """
    model = onnx_file.load(source)
    lengths: dict[str | None, int] = {}
    for value in model.graph.inputs:
        if value.name in feed and value.shape is not None:
            found = feed[value.name].shape
            lengths |= {
                axis.value: size
                for axis, size in zip(value.shape, found, strict=True)
                if not isinstance(axis, int)
            }
            value.shape = ir.Shape(found)
    lengths.pop(None, None)
    computed = (value for node in model.graph.all_nodes() for value in node.outputs)
    for value in (*model.graph.outputs, *computed):
        if value.shape is not None:
            value.shape = ir.Shape(
                axis if isinstance(axis, int) else lengths.get(axis.value, axis) for axis in value.shape
            )
    onnx_file.save(model, destination)
