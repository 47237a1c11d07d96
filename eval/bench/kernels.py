"""Our kernels and other engines on the same layers, timed in turns, beside the limits of the machine."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fgq.errors import KernelError
from fgq.eval.bench import ceilings
from fgq.eval.bench.baselines import prepare_baselines
from fgq.eval.bench.drawn_layers import Contender, DrawnLayer, draw_layer, prepare
from fgq.eval.bench.shapes import GEMM, LLM, RESNET50, Shape
from fgq.eval.bench.timing import Timing, time_alternating
from fgq.kernels.simd.isa import available, machine_features
from fgq.support.progress import Progress

WISHES = (
    ("multiplication-free", "compact"),
    ("dot", "fast"),
    ("dot", "compact"),
    ("auto", "fast"),
    ("auto", "compact"),
)
"""What is asked of the kernels: the wish, and how weights are held."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How a layer is run.

    Parameters
    ----------
    activation_bits : int
        8 or 4.
    threads : int
        How many to use.
    """

    activation_bits: int = 8
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """What is timed in turns with each other: ratios within a trial are those of the same minutes.

    Parameters
    ----------
    shape : MatMul or Conv
    group_size : int
        N.
    variants : tuple of Variant
    """

    shape: Shape
    group_size: int
    variants: tuple[Variant, ...] = (Variant(),)


FULL_PLAN: tuple[Trial, ...] = (
    *(Trial(shape, 64) for shape in LLM if shape != GEMM),
    Trial(GEMM, 64, (Variant(8, 1), Variant(4, 1), Variant(8, 2))),
    Trial(GEMM, 4),
    *(Trial(shape, 64) for shape in RESNET50),
    *(Trial(shape, 4) for shape in RESNET50 if shape.ternary),
)
"""All that :mod:`fgq.eval.bench.claims` asks."""


def plan_of(
    shapes: Sequence[Shape], group_sizes: Sequence[int], bits: Sequence[int], threads: Sequence[int]
) -> tuple[Trial, ...]:
    """Return the trials of every combination, once for each layer of 8-bit weights, which have no groups."""
    variants = tuple(Variant(b, t) for t, b in itertools.product(dict.fromkeys(threads), dict.fromkeys(bits)))
    sizes = list(dict.fromkeys(group_sizes))
    return tuple(
        Trial(shape, n, variants) for n in sizes for shape in shapes if shape.ternary or n == sizes[0]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One of our kernels on one layer, and the baselines that took turns with it.

    Parameters
    ----------
    op, shape : str
        The operator, and its sizes.
    count : int
        How often the network has the layer.
    group_size : int or None
        N; None for 8-bit weights.
    activation_bits, threads : int
        How the layer was run.
    wish, memory : str
        What was asked for; `memory` is how weights are really held.
    kernel, tier : str
        What ran.
    multiplication_free : bool
        Whether it adds and subtracts, but for one multiplication per group of weights.
    ms : float
        Median time of a call, in milliseconds.
    gmacs : float
        Multiply-adds that the layer stands for, in 10**9 a second.
    macs : int
        Multiply-adds.
    baselines : dict of str to float
        Median times of the others with as many threads, in milliseconds.
    resident_bytes : int
        Memory that the weights take.
    resident_bits_per_weight : float
    load_ms : float
        Time to bring the weights into the kernel's form.
    ceiling : str or None
        What binds: "read bandwidth", "dot rate" or "add rate".
    ceiling_fraction : float or None
        Share of it that is reached; None where it is not known.
    read_gbs, rate_gmacs : float
        The ceilings themselves: bytes of this working set and multiply-adds, in 10**9 a second; the second
        is None for portable kernels.
    busy : bool or None
        Whether other processes were at work in spite of repetitions; None where this is not known.
    """

    op: str
    shape: str
    count: int
    group_size: int | None
    activation_bits: int
    threads: int
    wish: str
    memory: str
    kernel: str
    tier: str
    multiplication_free: bool
    ms: float
    gmacs: float
    macs: int
    baselines: dict[str, float]
    resident_bytes: int
    resident_bits_per_weight: float
    load_ms: float
    ceiling: str | None
    ceiling_fraction: float | None
    read_gbs: float
    rate_gmacs: float | None
    busy: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All that a run found.

    Parameters
    ----------
    machine : dict
        Processor, features, versions and ceilings.
    rows : list of Row
    forms : dict of str to dict of str to str
        For each layer the form in which each baseline was fastest.
    missing : dict of str to str
        Baselines that did not run, and why.
    """

    machine: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    forms: dict[str, dict[str, str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Result:
        """Return what :meth:`to_dict` was called on."""
        return cls(**{**plain, "rows": [Row(**row) for row in plain["rows"]]})


def bench_kernels(
    plan: Sequence[Trial],
    progress: Progress,
    *,
    wishes: Collection[str] = ("multiplication-free", "dot", "auto"),
    quick: bool = False,
    seed: int = 0,
) -> Result:
    """Time kernels and baselines.

    Parameters
    ----------
    plan : sequence of Trial
    progress : callable
        Called as ``progress(stage, done, total)``.
    wishes : collection of str
        Those of :data:`WISHES` to time. A layer that no kernel can run so is left out.
    quick : bool
        One short sitting for each trial instead of several that are repeated when disturbed.
    seed : int
        Of weights and activations.

    Raises
    ------
    KernelError
        If two kernels do not give the same integers.
    """
    timing: dict[str, Any] = {"sittings": 1, "retries": 1, "seconds": 0.2} if quick else {}
    threads = sorted({variant.threads for trial in plan for variant in trial.variants})
    result = Result(machine=machine(threads))
    for done, trial in enumerate(plan):
        progress(f"{trial.shape.op} {trial.shape}, N={trial.group_size}", done, len(plan))
        layer = draw_layer(trial.shape, trial.group_size, seed)
        _time_trial(trial, layer, wishes, timing, result)
    return result


def _time_trial(
    trial: Trial, layer: DrawnLayer, wishes: Collection[str], timing: dict[str, Any], result: Result
) -> None:
    ours: dict[str, tuple[Variant, str, Contender]] = {}
    for variant in trial.variants:
        contenders = _contenders(layer, variant, wishes)
        _check_equal(trial, list(contenders.values()))
        for (wish, memory), contender in contenders.items():
            ours[f"{wish}, {memory}, {variant}"] = variant, wish, contender
    if not ours:
        return
    functions: dict[str, Callable[[], object]] = {}
    theirs: dict[int, dict[str, str]] = {}  # threads: name of the baseline: name of the function
    for threads in sorted({variant.threads for variant in trial.variants}):
        ready, missing = prepare_baselines(layer, threads)
        result.missing.update(missing)
        result.forms.setdefault(str(trial.shape), {}).update(
            {name: baseline.form for name, baseline in ready.items()}
        )
        theirs[threads] = {name: f"{name}, {threads} threads" for name in ready}
        functions |= {theirs[threads][name]: baseline.run for name, baseline in ready.items()}
    functions |= {key: contender.run for key, (_, _, contender) in ours.items()}
    spinning = any(variant.threads > 1 for variant in trial.variants)
    times = time_alternating(functions, spinning=spinning, **timing)
    for key, (variant, wish, contender) in ours.items():
        baselines = {name: 1e3 * times[other].seconds for name, other in theirs[variant.threads].items()}
        result.rows.append(_row(layer, variant, wish, contender, times[key], baselines))


def _contenders(
    layer: DrawnLayer, variant: Variant, wishes: Collection[str]
) -> dict[tuple[str, str], Contender]:
    """Return the kernels that meet each wish, where one does."""
    found = {}
    for wish, memory in WISHES:
        if wish not in wishes:
            continue
        try:
            contender = prepare(
                layer, wish=wish, memory=memory, bits=variant.activation_bits, threads=variant.threads
            )
        except KernelError:
            continue  # 8-bit weights can be neither added nor packed
        if contender.memory == memory:
            found[wish, memory] = contender
    return found


def _check_equal(trial: Trial, contenders: Sequence[Contender]) -> None:
    if not contenders:
        return
    first, *others = contenders
    expected = first.run()
    for other in others:
        if not np.array_equal(other.run(), expected):
            raise KernelError(
                f"{trial.shape.op} {trial.shape}: found other results from {other.kernel}[{other.tier}] than "
                f"from {first.kernel}[{first.tier}], wanted the same integers"
            )


def _row(
    layer: DrawnLayer,
    variant: Variant,
    wish: str,
    contender: Contender,
    timing: Timing,
    baselines: dict[str, float],
) -> Row:
    shape, weights = layer.shape, int(np.prod(layer.shape.weights))
    bandwidth = _bandwidth(contender.resident_bytes, variant.threads)
    rate = _rate(contender, variant)
    bounds = {"read bandwidth": contender.resident_bytes / bandwidth}
    if rate is not None:
        bounds["add rate" if contender.multiplication_free else "dot rate"] = shape.macs / rate
    ceiling = max(bounds, key=lambda name: bounds[name])
    return Row(
        op=shape.op,
        shape=str(shape),
        count=shape.count,
        group_size=layer.group_size,
        activation_bits=variant.activation_bits,
        threads=variant.threads,
        wish=wish,
        memory=contender.memory,
        kernel=contender.kernel,
        tier=contender.tier,
        multiplication_free=contender.multiplication_free,
        ms=1e3 * timing.seconds,
        gmacs=shape.macs / timing.seconds / 1e9,
        macs=shape.macs,
        baselines=baselines,
        resident_bytes=contender.resident_bytes,
        resident_bits_per_weight=8 * contender.resident_bytes / weights,
        load_ms=1e3 * contender.load_seconds,
        ceiling=ceiling if rate is not None else None,
        ceiling_fraction=bounds[ceiling] / timing.seconds if rate is not None else None,
        read_gbs=bandwidth / 1e9,
        rate_gmacs=None if rate is None else rate / 1e9,
        busy=timing.busy,
    )


@cache
def _bandwidth(count: int, threads: int) -> float:
    return ceilings.read_bandwidth(count, threads)


def _rate(contender: Contender, variant: Variant) -> float | None:
    """Return the multiply-adds a second that the instruction set of a kernel allows."""
    if not contender.multiplication_free:
        return ceilings.dot_rate(contender.tier, variant.threads)
    lane = 8 if variant.activation_bits == 4 else 16
    adds = ceilings.add_rate(contender.tier, lane, variant.threads)
    return None if adds is None else ceilings.WEIGHTS_PER_ADDITION * adds


_WORKING_SETS = {"32 KiB": 1 << 15, "512 KiB": 1 << 19, "8 MiB": 1 << 23, "64 MiB": 1 << 26}
"""For which the machine's read bandwidth is told: what the caches hold, and more than that."""


def machine(threads: Sequence[int]) -> dict[str, Any]:
    """Describe this machine: processor, features, versions and ceilings.

    Parameters
    ----------
    threads : sequence of int
        For which the ceilings are measured.
    """
    sets = available()
    best = sets[0].name
    measured = {}
    for count in threads:
        dots, adds = ceilings.dot_rate(best, count), ceilings.add_rate(best, 16, count)
        measured[str(count)] = {
            "read_gbs": {
                name: ceilings.read_bandwidth(size, count) / 1e9 for name, size in _WORKING_SETS.items()
            },
            "dot_gmacs": None if dots is None else dots / 1e9,
            "int16_gadds": None if adds is None else adds / 1e9,
        }
    return {
        "cpu": _processor(),
        "features": sorted(machine_features()),
        "tiers": [isa.name for isa in sets],
        "ceilings": measured,
        "versions": {
            name: metadata.version(name)
            for name in ("fgq", "numpy", "numba", "onnxruntime", "openvino")
            if name != "openvino" or _installed(name)
        },
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
