"""What a report says in plain words: what the conversion changed, which layers cost most, what to try."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fgq.eval.report.quality import SHARES, Measure
from fgq.eval.report.study import Findings, LayerFindings
from fgq.quantization.scheme import Codes
from fgq.quantization.statistics import Estimate
from fgq.report import Report

MEASURE_NAMES = {
    "top1": "top-1 accuracy",
    "reciprocal_rank": "mean reciprocal rank",
    "cosine": "cosine to the float output",
    "agreement": "same largest entry as the float model",
    "relative_error": "relative error of the output",
}

COSTLIEST = 5
"""So many layers are marked at most."""

NAMED = 3
"""So many of them are named at most."""

MAKE_UP = 2.0
"""Where the layers' sensitivities add up to this multiple of the model's, it is said why."""

LEAST_GROUP = 4
"""The smallest group that is suggested: its alpha takes as much room as its codes."""

MOST_BITS = 8
"""Budgets of so many bits are 8-bit weights."""

MOSTLY_FLOAT = 0.25
"""Where float constants take more than this share of the file, it is said."""

FEW = 8
"""Layers are few where they are this part of all."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Something to try.

    Parameters
    ----------
    options : str
        For `fgq convert`.
    reason : str
    """

    options: str
    reason: str


def estimate_text(name: str, estimate: Estimate) -> str:
    """Write a measure with its interval: shares in percent, all else as it is."""
    return estimate.percent(2) if name in SHARES else str(estimate)


def size_change(report: Report) -> str:
    """Say how much smaller a file has become, or larger, as those of very small models do."""
    ratio = report.float_bytes / report.converted_bytes
    return f"{ratio:.1f} times smaller" if ratio >= 1 else f"{1 / ratio:.1f} times larger"


def costliest(findings: Findings) -> list[LayerFindings]:
    """Return the layers that change the outputs most when quantized alone, the worst first.

    A change that is no finite number is the worst.
    """
    changes = [(_worst_if_not_finite(layer.sensitivity), layer) for layer in findings.layers]
    known = [(change, layer) for change, layer in changes if change > 0.0]
    return [layer for _, layer in sorted(known, key=lambda each: -each[0])[:COSTLIEST]]


def total_sensitivity(findings: Findings) -> float:
    """Return the sum over the layers of what is finite."""
    known = (layer.sensitivity for layer in findings.layers)
    return math.fsum(value for value in known if value is not None and math.isfinite(value))


def share_text(sensitivity: float | None, total: float) -> str:
    """Write a layer's part of the sum over all; nothing where it has none."""
    if sensitivity is None or (not total and math.isfinite(sensitivity)):
        return ""
    if not math.isfinite(sensitivity):
        return "not finite"
    share = 100 * sensitivity / total
    return "< 1 %" if share < 1 else f"{share:.0f} %"


def summary(findings: Findings) -> list[str]:
    """Say in a few sentences what the conversion did.

    Parameters
    ----------
    findings : Findings
    """
    return [_quality(findings), _cost(findings), *_layers(findings)]


def suggestions(findings: Findings) -> list[Suggestion]:
    """Say which options of `fgq convert` are worth a try, the most promising first.

    There are none where nothing is lost.

    Parameters
    ----------
    findings : Findings
    """
    return list(_suggestions(findings)) if loses(findings) else []


def loses(findings: Findings) -> bool:
    """Tell whether the converted model is worse beyond what its interval leaves open, as far as is known."""
    if not findings.quality.measures:
        return True
    difference = findings.quality.measures[0].difference
    return difference is None or difference.high < 0


def _worst_if_not_finite(sensitivity: float | None) -> float:
    value = sensitivity or 0.0
    return value if math.isfinite(value) else math.inf


def _quality(findings: Findings) -> str:
    quality = findings.quality
    if not quality.measures:
        return f"Its quality could not be measured: {quality.problem}."
    first = quality.measures[0]
    about = f"on {quality.samples:,} samples"
    name = MEASURE_NAMES[first.name]
    if first.before is None or first.difference is None:
        return f"The converted model compared with the float one {about}: {_alone(quality.measures)}."
    change = (
        f"The converted model reaches {_value(first, first.after)} {name} {about}, the float model "
        f"{_value(first, first.before)}"
    )
    if first.difference.low <= 0 <= first.difference.high:
        return f"{change}; that difference may be chance, as its 95 % interval holds zero."
    size = abs(first.difference.value)
    amount = f"{100 * size:.2f} points" if first.name in SHARES else f"{size:.3f}"
    return f"{change}: {amount} {'less' if first.difference.value < 0 else 'more'}, which is beyond chance."


def _alone(measures: Sequence[Measure]) -> str:
    return ", ".join(f"{MEASURE_NAMES[each.name]} {_value(each, each.after)}" for each in measures)


def _value(measure: Measure, estimate: Estimate) -> str:
    return f"{100 * estimate.value:.2f} %" if measure.name in SHARES else f"{estimate.value:.3f}"


def _cost(findings: Findings) -> str:
    report = findings.report
    text = f"Its file is {size_change(report)}, at {report.bits_per_weight:.2f} bits per weight of its layers"
    removed = report.multiplications_removed
    if removed:
        text += f"; additions replace {100 * removed:.1f} % of the multiplications by weights"
    share = findings.float_bytes / report.converted_bytes
    if share > MOSTLY_FLOAT:
        text += f". Float constants, such as embeddings, are {100 * share:.0f} % of the file"
    return text + "."


def _layers(findings: Findings) -> Iterator[str]:
    layers = findings.report.layers
    float_layers = sum(not layer.is_converted for layer in layers)
    converted = len(layers) - float_layers
    text = f"{converted} of {len(layers)} layers {'is' if converted == 1 else 'are'} quantized"
    yield f"{text}; why the others are not stands below." if float_layers else f"{text}."
    total = total_sensitivity(findings)
    worst = costliest(findings)[:NAMED]
    if worst:
        named = ", ".join(f"{layer.report.name} ({share_text(layer.sensitivity, total)})" for layer in worst)
        yield (
            f"Quantized alone, the layers that change the output most are {named}: shares of what all such "
            "changes add up to."
            if len(worst) > 1
            else f"The output changes through {worst[0].report.name} alone."
        )
    if math.isfinite(findings.whole) and total > MAKE_UP * findings.whole:
        yield (
            f"All layers together change it less ({findings.whole:.2g}) than each alone adds up to "
            f"({total:.2g}). Calibrated layers make up for what earlier ones lose; alone, where nothing was "
            "lost before, that counts as a change."
        )


def _suggestions(findings: Findings) -> Iterator[Suggestion]:
    low = [layer for layer in findings.layers if layer.scheme and layer.scheme.codes.spec.packed]
    N = max((layer.scheme.group_size or 1 for layer in low if layer.scheme), default=0)
    if low:
        yield from _budget(findings, N)
    if any(layer.scheme and layer.scheme.codes is Codes.TERNARY for layer in low):
        yield Suggestion(
            "--weights tied", "nine levels in place of three, in 4 bits, still without multiplications"
        )
    if N > LEAST_GROUP:
        smaller = max(N // 4, LEAST_GROUP)
        more = 8 / smaller - 8 / N
        yield Suggestion(
            f"--group-size {smaller}",
            f"smaller groups follow the weights closer, for {more:.2g} bits a weight more",
        )
    if any(layer.report.activations == "int4" for layer in findings.layers):
        yield Suggestion("--activations int8", "256 levels of activations in place of 16")
    yield from _exclusion(low)
    if low:
        yield Suggestion(
            "--recipe calibrated",
            "if it was converted by another recipe, or with few samples: with some hundred, groups are "
            "chosen for what they do to the output",
        )


def _budget(findings: Findings, N: int) -> Iterator[Suggestion]:
    """Yield a budget of about one bit more for each weight, for which a plan is made."""
    layers = [layer for layer in findings.layers if layer.scheme]
    held = sum(layer.memory_bits * layer.report.weights for layer in layers)
    now = held / sum(layer.report.weights for layer in layers)
    target = math.floor(now) + 1
    if target < MOST_BITS:
        yield Suggestion(
            f"--target-bits {target} --group-size {N}",
            f"gives sensitive layers tied or 8-bit codes, for {target} bits a weight in memory, where there "
            f"are {now:.2g} now",
        )


def _exclusion(low: Sequence[LayerFindings]) -> Iterator[Suggestion]:
    """Yield the layers that make up half of the loss, where they are few."""
    order = sorted(low, key=lambda layer: -_worst_if_not_finite(layer.sensitivity))
    values = [_worst_if_not_finite(layer.sensitivity) for layer in order]
    if len(low) < 2 or values[0] == 0.0:
        return
    half = next(n for n in range(1, len(values) + 1) if sum(values[:n]) >= sum(values) / 2)
    if half <= max(1, len(low) // FEW):
        names = [layer.report.name for layer in order[:half]]
        bits = sum(layer.report.weights * (32 - layer.report.bits_per_weight) for layer in order[:half])
        yield Suggestion(
            f"--exclude {shlex.quote('^(' + '|'.join(map(re.escape, names)) + ')$')}",
            f"leaves float what makes up half of the changes by low bits, for {bits / 8e6:.2g} MB more",
        )
