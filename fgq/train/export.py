"""From a trained module to the file that `fgq.convert` writes."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from fgq.config import Form
from fgq.converters import quantized_graph
from fgq.converters.float_layers import Layer, find_layers
from fgq.converters.passes import prepare as prepare_graph
from fgq.errors import ModelError, first_line
from fgq.format import onnx_file
from fgq.format.container import ACTIVATION_BOUNDS, sign
from fgq.quantization.scheme import Quantizer
from fgq.quantization.tensor import QuantizedTensor
from fgq.train.conversion import alike, laid_out
from fgq.train.prepare import quantized_layers
from fgq.train.quantizer import ActivationQuantizer
from fgq.train.twins import QuantizedLayer

OPSET = 18


def export(
    module: nn.Module,
    path: str | os.PathLike[str],
    example: tuple[Tensor, ...],
    *,
    form: Form = Form.PACKED,
    input_names: Sequence[str] = ("input",),
    output_names: Sequence[str] = ("output",),
    open_axes: Sequence[Iterable[int]] | None = None,
) -> list[str]:
    """Write a prepared module as a converted model, whole or not at all.

    Parameters
    ----------
    module : torch.nn.Module
        As `fgq.train.prepare` returned it, trained or not; all its activation ranges known. Left as it is.
    path : path-like
        The .onnx file.
    example : tuple of torch.Tensor
        Inputs, at least two samples.
    form : Form
    input_names, output_names : sequence of str
    open_axes : sequence of iterable of int, optional
        For each input the axes whose length the file leaves open; otherwise the first.

    Returns
    -------
    list of str
        The layers whose weights stay float values, as the converter has no integers for their operator;
        their values are the quantized ones.

    Raises
    ------
    ModelError
        If a range is unknown, or PyTorch cannot export the module.
    """
    _check_ranges(module)
    layers = quantized_layers(module)
    plain = copy.deepcopy(module).eval()
    for name, layer in quantized_layers(plain).items():
        plain.set_submodule(name, _float_layer(layer, layers[name].tensor()))
    for name, quantizer in list(plain.named_modules()):
        if isinstance(quantizer, ActivationQuantizer):
            plain.set_submodule(name, _OnnxQuantizer(quantizer.value()))
    model = ir.serde.deserialize_model(
        _onnx(plain, example, input_names, output_names, open_axes or [(0,)] * len(example))
    )
    prepare_graph(model)
    written, found = [], set()
    for entry in find_layers(model):
        left = {name: layer for name, layer in layers.items() if name not in found}
        owner = _owner(entry, left) if isinstance(entry, Layer) else None
        if not isinstance(entry, Layer) or owner is None:
            continue
        quantizer = layers[owner].input_quantizer
        scale = None if quantizer is None else quantizer.value().scale
        tensor = laid_out(layers[owner].tensor(), entry.group_axis, entry.channel_axis)
        written.append(quantized_graph.QuantizedLayer(entry, tensor, scale))
        found.add(owner)
    quantized_graph.write_weights(model, written, form, {})
    sign(model, form)
    with onnx_file.staged(path) as place:
        onnx_file.save(model, place)
    return [name for name in layers if name not in found]


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence deprecations inside PyTorch's exporters, and their note that torchvision is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _OnnxQuantizer(nn.Module):
    """A quantizer as the nodes that the converter writes for it."""

    scale: Tensor
    zero_point: Tensor
    lowest: Tensor
    largest: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.bits = quantizer.bits
        self.register_buffer("scale", torch.tensor(quantizer.scale))
        self.register_buffer("zero_point", torch.tensor(quantizer.zero_point, dtype=torch.uint8))
        for name, bound in zip(("lowest", "largest"), ACTIVATION_BOUNDS[quantizer.bits], strict=True):
            self.register_buffer(name, torch.tensor(bound, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize."""
        parameters = (self.scale, self.zero_point)
        symbolic = torch.onnx.ops.symbolic
        q = symbolic("QuantizeLinear", (x, *parameters), dtype=torch.uint8, shape=x.shape)
        if self.bits < 8:
            q = symbolic("Clip", (q, self.lowest, self.largest), dtype=torch.uint8, shape=x.shape)
        return symbolic("DequantizeLinear", (q, *parameters), dtype=torch.float32, shape=x.shape)


def _check_ranges(module: nn.Module) -> None:
    for name, quantizer in module.named_modules():
        if isinstance(quantizer, ActivationQuantizer) and not float(quantizer.scale.detach()) > 0:
            raise ModelError(f"{name}: found no range, wanted a calibrated or trained module; call calibrate")


def _float_layer(layer: QuantizedLayer, tensor: QuantizedTensor) -> nn.Module:
    """Return the float layer of a twin, with the quantized values for weights."""
    plain = copy.copy(layer)
    plain.__dict__ = {k: v for k, v in layer.__dict__.items() if not k.endswith("put_quantizer")}
    plain.__dict__["_parameters"] = {k: v for k, v in layer._parameters.items() if k != "group_scale"}
    plain.__dict__["_buffers"] = {k: v for k, v in layer._buffers.items() if k != "row_scale"}
    plain.__class__ = _float_type(layer)  # type: ignore[assignment]
    plain.weight = nn.Parameter(torch.from_numpy(tensor.dequantize()))
    return plain


def _float_type(layer: QuantizedLayer) -> type[nn.Module]:
    return next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn.modules"))


def _onnx(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    open_axes: Sequence[Iterable[int]],
) -> onnx.ModelProto:
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module,
                example,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=tuple(
                    {axis: f"axis_{axis}" if axis else "batch" for axis in axes} for axes in open_axes
                ),
                opset_version=OPSET,
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except Exception as error:
        reason = first_line(error)
        raise ModelError(f"{type(module).__name__}: PyTorch cannot export it ({reason})") from error
    assert program is not None
    model = program.model_proto
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, model.graph):
        item.ClearField("metadata_props")  # stack traces, which name files of this machine
        item.ClearField("doc_string")
    return model


def _owner(entry: Layer, layers: dict[str, QuantizedLayer]) -> str | None:
    """Return the layer that a node computes, by its weight's name or, where that is lost, by its values."""
    weight = str(entry.weight.name)
    named = next((name for name in layers if weight.startswith(f"{name}.weight")), None)
    if named is not None:
        return named
    return next(
        (name for name, layer in layers.items() if alike(entry, layer, layer.tensor().dequantize())), None
    )
