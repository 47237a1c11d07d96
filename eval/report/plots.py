"""The pictures of a report as PNG files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgq.errors import ConfigError, OutputError, printable
from fgq.eval.report.histograms import ActivationHistogram, WeightHistogram
from fgq.eval.report.study import Findings, LayerFindings
from fgq.format import onnx_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 40
"""Layers in one picture of bars."""

LONGEST = 40
"""Characters of a name."""

PAGE = 6
"""Layers in one picture of histograms."""

BARS, ZEROS, LIMITS = "#0072b2", "#003f63", "#d55e00"
"""Colours that stay apart for the colour-blind (Okabe and Ito)."""


def require_matplotlib() -> None:
    """Refuse to go on without matplotlib.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("plots: found no matplotlib, wanted it: pip install 'fgq[report]'") from None


def draw_plots(findings: Findings, folder: Path) -> list[Path]:
    """Draw every layer's bars (``layers-01.png`` ..) and histograms (``histograms-01.png`` ..).

    Parameters
    ----------
    findings : Findings
    folder : Path
        Made if it does not exist.

    Returns
    -------
    list of Path
        The files that were written.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    OutputError
        If the folder or a file cannot be written.
    """
    require_matplotlib()
    make_folder(folder)
    layers = [layer for layer in findings.layers if layer.weights is not None]
    written = []
    for stem, figures in (
        ("layers", _bars(findings.layers)),
        ("histograms", _histograms(layers)),
    ):
        for number, figure in enumerate(figures, 1):
            path = folder / f"{stem}-{number:02}.png"
            with onnx_file.staged(path) as staged:
                figure.savefig(staged, dpi=120)
            written.append(path)
    return written


def make_folder(folder: Path) -> None:
    """Make a folder where there is none.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None


def _bars(layers: Sequence[LayerFindings]) -> Iterator[Figure]:
    from matplotlib.figure import Figure

    columns = {
        "change of the output": [layer.sensitivity for layer in layers],
        "signal to noise, dB": [layer.signal_to_noise_db for layer in layers],
        "bits of a weight": [
            layer.report.bits_per_weight if layer.report.is_converted else None for layer in layers
        ],
    }
    for start in range(0, len(layers), ROWS):
        part = slice(start, start + ROWS)
        names = [_text(layer.report.name) for layer in layers[part]]
        figure = Figure(figsize=(11, 1.2 + 0.24 * len(names)), layout="constrained")
        for axes, (title, values) in zip(
            figure.subplots(1, len(columns), sharey=True), columns.items(), strict=True
        ):
            axes.barh(range(len(names)), [_finite(value) for value in values[part]], color=BARS)
            axes.set_title(title, loc="left", fontsize=10)
            # The same scale in every picture.
            axes.set_xlim(0, 1.05 * max(map(_finite, values), default=0.0) or 1.0)
            axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
            axes.tick_params(axis="x", labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].invert_yaxis()  # shared by all
        yield figure


def _histograms(layers: Sequence[LayerFindings]) -> Iterator[Figure]:
    from matplotlib.figure import Figure

    for start in range(0, len(layers), PAGE):
        some = layers[start : start + PAGE]
        figure = Figure(figsize=(11, 0.4 + 1.9 * len(some)), layout="constrained")
        for layer, (left, right) in zip(some, figure.subplots(len(some), 2, squeeze=False), strict=True):
            left.set_title(f"{_text(layer.report.name)}: weights", loc="left", fontsize=9, parse_math=False)
            right.set_title("activations", loc="left", fontsize=9)
            assert layer.weights is not None
            _draw_weights(left, layer.weights)
            if layer.activations is None:
                right.set_axis_off()
            else:
                _draw_activations(right, layer.activations)
            for axes in (left, right):
                axes.tick_params(labelsize=8)
                axes.spines[["top", "right"]].set_visible(False)
        yield figure


def _draw_weights(axes: Any, histogram: WeightHistogram) -> None:
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    axes.stairs(histogram.counts, edges, fill=True, color=BARS, alpha=0.4, label="all")
    axes.stairs(histogram.zeros, edges, fill=True, color=ZEROS, label="became zero")
    if histogram.thresholds is not None:
        low, median, high = histogram.thresholds
        for sign in (-1, 1):
            axes.axvspan(*sorted((sign * low, sign * high)), color=LIMITS, alpha=0.2, linewidth=0)
            axes.axvline(sign * median, color=LIMITS, linewidth=1)
    axes.set_xlim(histogram.low, histogram.high)
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(bottom=0.5)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def _draw_activations(axes: Any, histogram: ActivationHistogram) -> None:
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    axes.stairs(histogram.counts, edges, fill=True, color=BARS, alpha=0.4)
    if histogram.quantizer is not None:
        low, high = histogram.range
        for end, limit in ((histogram.low, low), (histogram.high, high)):
            axes.axvspan(*sorted((end, limit)), color=LIMITS, alpha=0.2, linewidth=0)
            axes.axvline(limit, color=LIMITS, linewidth=1)
    axes.set_xlim(histogram.low, histogram.high)
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(bottom=0.5)


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) and value > 0 else 0.0


def _text(name: str) -> str:
    """Return a name short enough for an axis; the document has all of it."""
    shown = printable(name)
    return shown if len(shown) <= LONGEST else f"..{shown[2 - LONGEST :]}"
