"""Second stage: the schemes of all layers are final, and activations have quantizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fgq.conversion.context import Context
from fgq.conversion.dual import second_inputs, second_weights
from fgq.conversion.prepared import Prepared
from fgq.conversion.smooth import smooth
from fgq.converters.float_layers import FloatNode
from fgq.converters.select import Choice
from fgq.converters.sites import Site, find_sites
from fgq.data.calibration import observe
from fgq.data.feed import Feed
from fgq.plan import Plan
from fgq.plan.tradeoffs import apply_plan
from fgq.quantization.mmse import StreamingHistogram, choose_quantizer
from fgq.quantization.scheme import ActivationScheme, Quantizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A prepared model, the final schemes of its layers, and the quantizers of its activations.

    Parameters
    ----------
    prepared : Prepared
        Its model has smoothed channels where that helps, and no quantizers yet.
    plan : Plan or None
    chosen : sequence of Choice or FloatNode
        All layers in graph order.
    feeds : sequence of feed, or None
        Calibration data; inputs of the model are cut to percentiles where these are asked for.
    histograms : mapping of str to StreamingHistogram
        What was observed, by tensor name.
    quantizers : mapping of Site to a mapping of bits to Quantizer
    """

    prepared: Prepared
    plan: Plan | None
    chosen: Sequence[Choice | FloatNode]
    feeds: Sequence[Feed] | None
    histograms: Mapping[str, StreamingHistogram]
    quantizers: Mapping[Site, Mapping[int, Quantizer]]

    @property
    def model(self) -> ir.Model:
        """The model, which the next stage changes in place."""
        return self.prepared.model

    @property
    def choices(self) -> list[Choice]:
        """The layers that are converted."""
        return [entry for entry in self.chosen if isinstance(entry, Choice)]


def calibrate(prepared: Prepared, plan: Plan | None, context: Context) -> Calibrated:
    """Settle the schemes of all layers, and choose the ranges of their inputs.

    Sites are found again only after what changes them: scales that are moved put operators into the graph,
    and a second 4-bit tensor makes an input 8 bits wide.

    Parameters
    ----------
    prepared : Prepared
        Its model is changed in place where channels are smoothed.
    plan : Plan or None
        The scheme of every layer, in place of what the configuration alone gives them.
    context : Context
    """
    model, feeds, config = prepared.model, prepared.feeds, context.config
    chosen = prepared.chosen if plan is None else apply_plan(prepared.chosen, plan, config)
    choices = [entry for entry in chosen if isinstance(entry, Choice)]
    sites = find_sites(model, choices)
    if feeds is not None and config.percentile is not None:
        feeds = _cut_inputs(model, sites, feeds, config.percentile)
    if config.smooths and feeds is not None:
        choices = smooth(model, choices, feeds, context.stage("smooth"))
        sites = find_sites(model, choices)
    choices = second_weights(choices, config)
    histograms = _observe(model, sites, feeds, context)
    limit = config.dual_activations_above
    if limit is not None:
        choices = second_inputs(choices, histograms, limit)
        sites = find_sites(model, choices)
    by_node = {choice.layer.node: choice for choice in choices}
    return Calibrated(
        prepared=prepared,
        plan=plan,
        chosen=[by_node[entry.layer.node] if isinstance(entry, Choice) else entry for entry in chosen],
        feeds=feeds,
        histograms=histograms,
        quantizers=_quantizers(sites, histograms),
    )


def _observe(
    model: ir.Model, sites: Sequence[Site], feeds: Sequence[Feed] | None, context: Context
) -> dict[str, StreamingHistogram]:
    """Count the values at each site, by the names of the tensors."""
    if not sites or feeds is None:
        return {}
    names = [str(site.tensor.name) for site in sites]
    report = context.stage("calibrate")
    return observe(
        model, names, feeds, progress=lambda done, _: report(done, None), percentile=context.config.percentile
    )


def _cut_inputs(
    model: ir.Model, sites: Sequence[Site], feeds: Sequence[Feed], percentile: float
) -> list[Feed]:
    """Cut what is quantized of the model's inputs to its range, as its quantizer will.

    What lies beyond would otherwise still set the ranges of all that is computed from it.
    """
    inputs = {str(value.name) for value in model.graph.inputs}
    names = [name for site in sites if (name := str(site.tensor.name)) in inputs]
    ranges = {
        name: histogram.percentile_range()
        for name, histogram in observe(model, names, feeds, percentile=percentile).items()
    }
    return [
        {name: array.clip(*ranges[name]) if name in ranges else array for name, array in feed.items()}
        for feed in feeds
    ]


def _quantizers(
    sites: Sequence[Site], histograms: Mapping[str, StreamingHistogram]
) -> dict[Site, dict[int, Quantizer]]:
    """Return the quantizers of each site, one for each width."""
    if not histograms:
        return {}
    quantizers: dict[Site, dict[int, Quantizer]] = {}
    for site in sites:
        histogram = histograms[str(site.tensor.name)]
        quantizers[site] = {
            bits: choose_quantizer(histogram, ActivationScheme(bits=bits)) for bits in site.bits
        }
    for site in sites:
        if site.same_as is not None:
            quantizers[site][8] = quantizers[_origin(site)][8]
    return quantizers


def _origin(site: Site) -> Site:
    while site.same_as is not None:
        site = site.same_as
    return site
