"""The roofline plot: each layer beside the limits that the machine sets it.

Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
architectures" (2009): over the multiply-adds that a layer does for each byte it reads, no point lies above
reading rate times that intensity, nor above the rate of arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fgq.errors import ConfigError
from fgq.eval.bench.baselines import FLOAT
from fgq.eval.bench.ceilings import WEIGHTS_PER_ADDITION
from fgq.eval.bench.kernels import Result, Row

_FLOAT_BYTES = 4

_SERIES = {
    "onnxruntime float": ("#8a8a8a", "."),
    "multiplication-free": ("#d55e00", "o"),
    "dot, compact": ("#009e73", "^"),
    "dot, fast": ("#0072b2", "s"),
}
"""Colours that stay apart for the colour-blind (Okabe and Ito), and markers."""

_MARKER_AREA = 26


def draw_roofline(result: Result, path: Path) -> None:
    """Draw the rows of one thread, N=64 and 8-bit activations.

    Parameters
    ----------
    result : Result
    path : Path
        Image to write, .svg or .png.

    Raises
    ------
    ConfigError
        If matplotlib is not installed, or no row is to be drawn.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("plot: found no matplotlib, wanted it: pip install 'fgq[report]'") from None
    rows = [
        row
        for row in result.rows
        if (row.threads, row.activation_bits) == (1, 8) and row.group_size in (None, 64)
    ]
    points = _points(rows)
    if not points:
        raise ConfigError("plot: found no row of one thread, N=64 and int8, wanted some")
    ceilings = result.machine["ceilings"]["1"]

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("multiply-adds for each byte of weights")
    axes.set_ylabel("GMAC/s")
    axes.set_title("One thread, N=64, 8-bit activations", loc="left", fontsize=11)
    everything = np.concatenate(list(points.values()))
    left, right = everything[:, 0].min() / 2, everything[:, 0].max() * 2
    bottom = everything[:, 1].min() / 2

    roofs = {"int8 dot products": ceilings["dot_gmacs"]}
    if ceilings["int16_gadds"] is not None:
        roofs["additions, 3 weights each"] = WEIGHTS_PER_ADDITION * ceilings["int16_gadds"]
    highest = max([rate for rate in roofs.values() if rate is not None], default=everything[:, 1].max())
    for name, rate in roofs.items():
        if rate is not None:
            axes.axhline(rate, color="#444444", linewidth=1)
            axes.annotate(f"{name}: {rate:.0f}", (left, rate), xytext=(4, 3),
                          textcoords="offset points", fontsize=8, color="#444444")  # fmt: skip
    sizes = list(ceilings["read_gbs"].items())
    for (size, rate), style in zip((sizes[1], sizes[-1]), ("--", "-"), strict=True):
        x = np.array([left, min(right, highest / rate)])
        axes.plot(x, rate * x, color="#444444", linewidth=1, linestyle=style)
        place = left * 1.15 if rate * left > bottom else 1.15 * bottom / rate
        axes.annotate(f"reading {size}: {rate:.0f} GB/s", (place, rate * place), xytext=(-2, 8),
                      textcoords="offset points", fontsize=8, color="#444444", rotation=38,
                      rotation_mode="anchor")  # fmt: skip
    for name, found in points.items():
        colour, marker = _SERIES[name]
        axes.scatter(found[:, 0], found[:, 1], s=_MARKER_AREA, color=colour, marker=marker, label=name,
                     linewidths=0.4, edgecolors="white", alpha=0.8, zorder=3)  # fmt: skip
    axes.set(xlim=(left, right), ylim=(bottom, 2 * highest))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    with mpl.rc_context({"svg.hashsalt": "fgq"}):  # the same figures give the same file
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _points(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Return intensity and GMAC/s of each series, [points, 2]."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in _SERIES}
    for row in rows:
        name = row.wish if row.multiplication_free else f"{row.wish}, {row.memory}"
        if name not in found:
            continue  # auto is one of the others
        found[name].append((row.macs / row.resident_bytes, row.gmacs))
        if FLOAT in row.baselines and (name == "dot, fast"):
            weights = 8 * row.resident_bytes / row.resident_bits_per_weight
            gmacs = row.macs / (row.baselines[FLOAT] * 1e6)
            found["onnxruntime float"].append((row.macs / (_FLOAT_BYTES * weights), gmacs))
    return {name: np.array(points) for name, points in found.items() if points}
