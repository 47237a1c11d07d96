"""From a float module to one with quantized weights and activations."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fgq.errors import ConfigError, DataError, ModelError, first_line
from fgq.quantization.mmse import StreamingHistogram, choose_quantizer
from fgq.quantization.scheme import ActivationScheme, Codes, WeightScheme
from fgq.train.quantizer import ActivationQuantizer, Ranges
from fgq.train.scales import Scales
from fgq.train.sites import Graph, ShapeRecorder, Site, find_sites, operands, placed
from fgq.train.twins import QUANTIZABLE, QuantizedEmbedding, QuantizedLayer, read_by, twin

INT8_ACTIVATIONS = ActivationScheme(bits=8)

QUANTIZERS = "activation_quantizers"
"""The name under which a prepared module keeps its activation quantizers."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def prepare(
    module: nn.Module,
    scheme: WeightScheme,
    example: tuple[Tensor, ...],
    *,
    activations: ActivationScheme | None = INT8_ACTIVATIONS,
    plan: Mapping[str, WeightScheme | None] | None = None,
    first_last_int8: bool = True,
    ranges: Ranges | str = Ranges.STATISTICAL,
    scales: Scales | str = Scales.REFITTED,
    warm_up: int = 100,
) -> fx.GraphModule:
    """Return a copy of a module that computes as its conversion will, and can be trained.

    Batch normalization behind a convolution is folded into it, as the converter does; the layers keep their
    names and the names of their weights and biases. Quantizers stand where the converter puts them.

    Parameters
    ----------
    module : torch.nn.Module
        Traceable by `torch.fx.symbolic_trace`. Left as it is.
    scheme : WeightScheme
        Of all layers that neither `plan` nor their place decides.
    example : tuple of torch.Tensor
        Inputs of the module.
    activations : ActivationScheme or None
        None leaves activations float.
    plan : mapping of str to WeightScheme or None, optional
        The schemes of layers by their names; None leaves a layer float.
    first_last_int8 : bool
        Keep the first convolution after an input and the last Linear before the output at 8 bits.
    ranges : Ranges or str
        ``statistical`` or ``learned`` ranges of activations.
    scales : Scales or str
        ``refitted`` or ``learned`` scales of weights.
    warm_up : int
        Training steps after which statistical ranges are frozen.

    Returns
    -------
    torch.fx.GraphModule

    Raises
    ------
    ModelError
        If the module cannot be traced or run, or holds no layer that can be quantized.
    ConfigError
        If the plan names no such layer.
    """
    traced = _trace(module, example)
    _fold_normalization(traced)
    names = [name for name, layer in traced.named_modules() if type(layer) in QUANTIZABLE]
    unknown = sorted(set(plan or {}) - set(names))
    if unknown:
        raise ConfigError(f"plan: found {unknown[0]!r}, wanted names of layers, as {', '.join(names[:3])}")
    eight_bit = _first_and_last(Graph(traced)) if first_last_int8 else set()
    int8 = WeightScheme(codes=Codes.INT8, weight_limit=scheme.weight_limit)
    full: set[str] = set()
    chosen = dict(plan or {})
    for name in names:
        layer = traced.get_submodule(name)
        depthwise = isinstance(layer, _CONVOLUTIONS) and layer.weight.shape[1] == 1
        wanted = chosen.get(name, int8 if name in eight_bit or depthwise else scheme)
        if wanted is None:
            continue
        if wanted.codes is Codes.INT8 and name not in chosen:
            full.add(name)
        traced.set_submodule(name, twin(layer, wanted))
    if Scales(scales) is Scales.LEARNED:
        for quantized in quantized_layers(traced).values():
            quantized.learn_scales()
    if not quantized_layers(traced):
        raise ModelError(
            f"{type(module).__name__}: found no layer to quantize, wanted a Conv, ConvTranspose, Linear or "
            "Embedding"
        )
    if activations is not None:
        _insert_quantizers(traced, activations, full, Ranges(ranges), warm_up)
    traced.recompile()
    return traced


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLayer]:
    """Return the quantized layers of a prepared module by their names."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLayer)}


@torch.no_grad()
def calibrate(module: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Set all activation quantizers to those of least squared error, as the float weights see it.

    Parameters
    ----------
    module : torch.nn.Module
        As `prepare` returned it.
    batches : iterable of tuple of torch.Tensor
        Inputs; some hundred samples.

    Raises
    ------
    DataError
        If there is no batch.
    """
    quantizers = {n: q for n, q in module.named_modules() if isinstance(q, ActivationQuantizer)}
    histograms = {name: StreamingHistogram(name) for name in quantizers}
    handles = [
        quantizer.register_forward_hook(_observer(histograms[name])) for name, quantizer in quantizers.items()
    ]
    layers = quantized_layers(module).values()
    strengths = [layer.strength for layer in layers]
    training = module.training
    module.eval()
    try:
        for layer in layers:
            layer.strength = 0.0
        seen = 0
        for batch in batches:
            module(*batch)
            seen += 1
    finally:
        for handle in handles:
            handle.remove()
        for layer, strength in zip(layers, strengths, strict=True):
            layer.strength = strength
        module.train(training)
    if not seen:
        raise DataError("calibration data: found no batch, wanted some hundred samples")
    for name, quantizer in quantizers.items():
        quantizer.set(choose_quantizer(histograms[name], ActivationScheme(bits=quantizer.bits)))


def _trace(module: nn.Module, example: tuple[Tensor, ...]) -> fx.GraphModule:
    try:
        traced = fx.symbolic_trace(copy.deepcopy(module))
    except Exception as error:  # whatever the module's own code raises on proxies
        raise ModelError(
            f"{type(module).__name__}: torch.fx cannot trace it ({first_line(error)}), wanted a "
            "module without control flow that depends on data"
        ) from error
    recorded = copy.deepcopy(traced).eval()
    try:
        with torch.no_grad():
            ShapeRecorder(recorded).run(*example)
    except Exception as error:
        reason = first_line(error)
        raise ModelError(f"{type(module).__name__}: cannot run on the example ({reason})") from error
    for node, measured in zip(traced.graph.nodes, recorded.graph.nodes, strict=True):
        node.meta["shape"] = measured.meta["shape"]
    return traced


@torch.no_grad()
def _fold_normalization(traced: fx.GraphModule) -> None:
    graph = Graph(traced)
    calls: dict[str, int] = {}
    for node in graph.nodes:
        calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    for node in graph.nodes:
        norm = graph.module(node)
        before = node.all_input_nodes[0] if node.all_input_nodes else None
        if (
            not isinstance(norm, _NORMALIZATIONS)
            or before is None
            or norm.running_mean is None
            or norm.running_var is None
        ):
            continue
        conv = graph.module(before)
        once = len(before.users) == 1 and calls[str(before.target)] == calls[str(node.target)] == 1
        if type(conv) not in _CONVOLUTIONS or not once:
            continue
        layer = cast(nn.Conv2d, conv)
        layer.weight, bias = fuse_conv_bn_weights(
            layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        layer.bias = bias.requires_grad_(layer.weight.requires_grad)  # it may be new
        traced.set_submodule(str(node.target), nn.Identity())


def _first_and_last(graph: Graph) -> set[str]:
    marked = {str(node.target) for node in graph.first(QUANTIZABLE) if _is_convolution(graph.module(node))}
    last = graph.head()
    if last is not None and isinstance(graph.module(last), nn.Linear):
        marked.add(str(last.target))
    return marked


def _is_convolution(module: nn.Module | None) -> bool:
    return isinstance(module, _CONVOLUTIONS)


def _insert_quantizers(
    traced: fx.GraphModule, activations: ActivationScheme, full: set[str], ranges: Ranges, warm_up: int
) -> None:
    graph = Graph(traced)
    layers = {n: layer for n, layer in graph.layers().items() if not isinstance(layer, QuantizedEmbedding)}
    bits = {node: 8 if str(node.target) in full else activations.bits for node in layers}
    sites = find_sites(graph, bits)
    holder = nn.ModuleDict()
    traced.add_submodule(QUANTIZERS, holder)
    keys: dict[tuple[Site, int], str] = {}
    for site, width, origin in placed(sites):
        key = f"{origin.node.name}_int{width}"
        if key not in holder:
            holder[key] = ActivationQuantizer(width, ranges, warm_up)
        keys[site, width] = key
    for node, layer in layers.items():
        site = next(site for site in sites if site.node is operands(node)[0])
        after = next((s for s in sites if s.node is graph.result(node) and s.from_integers), None)
        read_by(
            layer,
            cast(ActivationQuantizer, holder[keys[site, bits[node]]]),
            None if after is None else cast(ActivationQuantizer, holder[keys[after, max(after.bits)]]),
        )
    for site in sites:
        _insert_at(traced.graph, site, {width: f"{QUANTIZERS}.{keys[site, width]}" for width in site.bits})


def _insert_at(graph: fx.Graph, site: Site, targets: Mapping[int, str]) -> None:
    users = list(site.node.users)
    source = site.node
    for width in site.bits:
        with graph.inserting_after(source):
            result = graph.call_module(targets[width], (source,))
        for user in users:
            takes = site.readers.get(user) == width
            takes |= site.from_integers and user not in site.readers and width == max(site.bits)
            if takes:
                user.replace_input_with(site.node, result)
        source = result


def _observer(histogram: StreamingHistogram) -> Any:
    def observe(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        histogram.update(inputs[0].detach().float().cpu().contiguous().numpy())
        return inputs[0]  # what follows is calibrated on float values, as in the converter

    return observe
