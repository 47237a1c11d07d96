"""A report as one HTML document that needs nothing else: style and pictures are in it, and no script."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from fgq.errors import ConfigError, printable
from fgq.eval.report import charts
from fgq.eval.report.advice import (
    MEASURE_NAMES,
    costliest,
    estimate_text,
    share_text,
    size_change,
    suggestions,
    summary,
    total_sensitivity,
)
from fgq.eval.report.charts import Histogram
from fgq.eval.report.histograms import ActivationHistogram, WeightHistogram
from fgq.eval.report.quality import Measure
from fgq.eval.report.study import Findings, LayerFindings
from fgq.quantization.statistics import Estimate
from fgq.report import LayerReport

FOLDER = Path(__file__).parent
TEMPLATE = "report.html.jinja"

NOTHING = "–"
"""Stands where there is no value."""

_MEASURES = {
    True: "divergence (Kullback-Leibler) from the float model's probabilities, in nats",
    False: "squared error relative to the float model's output",
}
"""What a sensitivity is, for classifiers and for others."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A number with its bar.

    Parameters
    ----------
    text : str
    length : float
        0 .. `fgq.eval.report.charts.BAR`.
    """

    text: str
    length: float


@dataclass(frozen=True, slots=True)
class Picture:
    """A histogram with what is said of it.

    Parameters
    ----------
    shapes : Histogram
    low, high : str
        The ends of its axis.
    sentences : list of str
    """

    shapes: Histogram
    low: str
    high: str
    sentences: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerView:
    """A layer as the document shows it.

    Parameters
    ----------
    report : LayerReport
    facts : str
        Operator, shape and schemes.
    sensitivity, noise, bits : Bar
    share : str
        Of the sum of all sensitivities.
    weights, activations : Picture or None
    is_costly : bool
        Whether the summary may name it.
    """

    report: LayerReport
    facts: str
    sensitivity: Bar
    share: str
    noise: Bar
    bits: Bar
    weights: Picture | None
    activations: Picture | None
    is_costly: bool


def require_jinja2() -> None:
    """Refuse to go on without jinja2.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise ConfigError("report: found no jinja2, wanted it: pip install 'fgq[report]'") from None


def render(findings: Findings) -> str:
    """Write a report.

    Parameters
    ----------
    findings : Findings
        Names in it are escaped, and their control characters written out.

    Returns
    -------
    str
        HTML in UTF-8; the same findings give the same text.

    Raises
    ------
    ConfigError
        If jinja2 is not installed.
    """
    require_jinja2()
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    layers = layer_views(findings)
    return environment.get_template(TEMPLATE).render(
        findings=findings,
        title=Path(findings.converted).name,
        summary=summary(findings),
        suggestions=suggestions(findings),
        comparison=comparison(findings),
        layers=layers,
        float_layers=[view for view in layers if not view.report.is_converted],
        measure=_MEASURES[findings.is_classifier],
        box=charts,
        nothing=NOTHING,
    )


def comparison(findings: Findings) -> list[tuple[str, str, str, str]]:
    """Return what is measured, before, after, and the difference, row by row."""
    report = findings.report
    rows = [_measure_row(measure) for measure in findings.quality.measures]
    rows.append(("file", _size(report.float_bytes), _size(report.converted_bytes), size_change(report)))
    rows.append(("float constants in it", "", _size(findings.float_bytes), ""))
    rows.append(
        ("bits per weight of the layers, scales counted", "32.00", f"{report.bits_per_weight:.2f}", "")
    )
    removed = report.multiplications_removed
    if removed is not None:
        before = sum(layer.multiplications or 0 for layer in report.layers)
        after = round(before * (1 - removed))
        rows.append(
            ("multiplications by weights, one sample", f"{before:,}", f"{after:,}", f"{-100 * removed:.1f} %")
        )
    rows.append(("change of the output, all layers together", "", number(findings.whole), ""))
    return rows


def layer_views(findings: Findings) -> list[LayerView]:
    """Return every layer as it is shown."""
    layers, total = findings.layers, total_sensitivity(findings)
    costly = costliest(findings)
    sensitivities = charts.bar_lengths(layer.sensitivity for layer in layers)
    noises = charts.bar_lengths(layer.signal_to_noise_db for layer in layers)
    bits = [layer.report.bits_per_weight if layer.report.is_converted else None for layer in layers]
    return [
        LayerView(
            report=layer.report,
            facts=_facts(layer),
            sensitivity=Bar(number(layer.sensitivity), sensitivities[index]),
            share=share_text(layer.sensitivity, total),
            noise=Bar(decibels(layer.signal_to_noise_db), noises[index]),
            bits=Bar(NOTHING if bits[index] is None else f"{bits[index]:.2f}", length),
            weights=_weights(layer.weights),
            activations=_activations(layer.activations),
            is_costly=layer in costly,
        )
        for index, (layer, length) in enumerate(zip(layers, charts.bar_lengths(bits), strict=True))
    ]


def number(value: float | None) -> str:
    """Write two digits of a number."""
    return NOTHING if value is None else f"{value:.2g}"


def decibels(value: float | None) -> str:
    """Write a ratio in decibels."""
    if value is None:
        return NOTHING
    return "exact" if value == math.inf else f"{value:.1f}"


def _facts(layer: LayerFindings) -> str:
    report = layer.report
    parts = [report.operator]
    if report.shape:
        parts.append("x".join(map(str, report.shape)))
    parts.append(report.scheme)
    if report.is_converted:
        parts.append(f"{report.activations} activations")
    return ", ".join(parts)


def _measure_row(measure: Measure) -> tuple[str, str, str, str]:
    def written(estimate: Estimate | None) -> str:
        return "" if estimate is None else estimate_text(measure.name, estimate)

    before, after, difference = map(written, (measure.before, measure.after, measure.difference))
    return MEASURE_NAMES[measure.name], before, after, difference


def _weights(histogram: WeightHistogram | None) -> Picture | None:
    if histogram is None:
        return None
    sentences = [f"{100 * histogram.zero_share:.1f} % of the weights become zero."]
    if histogram.thresholds is not None:
        low, median, high = histogram.thresholds
        sentences.append(
            f"Nearest to zero are those below {median:.2g} in the median group, {low:.2g} to {high:.2g} in "
            "nine of ten."
        )
    shapes = charts.weight_shapes(histogram)
    return Picture(shapes, f"{histogram.low:.2g}", f"{histogram.high:.2g}", sentences)


def _activations(histogram: ActivationHistogram | None) -> Picture | None:
    if histogram is None:
        return None
    sentences = [f"Values from {histogram.minimum:.3g} to {histogram.maximum:.3g}."]
    if histogram.quantizer is None:
        sentences.append("They are not quantized.")
    else:
        low, high = histogram.range
        sentences.append(
            f"{histogram.quantizer.highest + 1} levels from {low:.3g} to {high:.3g}; "
            f"{_percent(histogram.clipped_share)} of the values are clipped; signal to noise "
            f"{decibels(histogram.signal_to_noise_db)} dB."
        )
    shapes = charts.activation_shapes(histogram)
    return Picture(shapes, f"{histogram.low:.3g}", f"{histogram.high:.3g}", sentences)


def _percent(share: float) -> str:
    return "none" if share == 0 else f"{100 * share:.2g} %"


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
