"""What a run found, as cells of tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from fgq.eval.bench.baselines import FLOAT
from fgq.eval.bench.claims import claims, geometric_mean
from fgq.eval.bench.kernels import Result, Row

Table = tuple[list[str], list[list[str]]]
"""Columns, and lines of as many cells."""

DISTURBED = "*"
"""Stands at times that were taken while other processes were busy, and at ratios of such times."""


def machine_facts(result: Result) -> dict[str, str]:
    """Return what the machine is and what it can do at most."""
    machine = result.machine
    facts = {
        "processor": str(machine["cpu"]),
        "instruction sets": ", ".join(machine["tiers"]),
        "versions": ", ".join(f"{name} {found}" for name, found in machine["versions"].items()),
    }
    for threads, found in machine["ceilings"].items():
        reading = ", ".join(f"{rate:.0f} GB/s of {size}" for size, rate in found["read_gbs"].items())
        rates = [
            f"{found[key]:.0f} {unit}"
            for key, unit in (("dot_gmacs", "GMAC/s of int8 dot products"), ("int16_gadds", "G int16 adds/s"))
            if found[key] is not None
        ]
        facts[f"ceilings, {_count(int(threads))}"] = "; ".join([f"reads {reading}", *rates])
    facts |= {f"no {name}": reason for name, reason in result.missing.items()}
    return facts


def kernels_table(rows: Sequence[Row]) -> Table:
    """Return a line for each of our rows, with how many times faster it is than each baseline.

    The ceiling that binds is named by a word: read bandwidth, dot rate or add rate.
    """
    names = _baselines(rows)
    columns = [
        *("layer", "N", "act", "thr", "way", "kernel", "tier", "ms", "GMAC/s", "bits", "load ms", "ceiling"),
        *(f"x {_short(name)}" for name in names),
    ]
    lines = []
    for row in rows:
        fraction = row.ceiling_fraction
        ratios = [_ratio(row.baselines.get(name), row.ms) for name in names]
        lines.append(
            [
                *_setting(row),
                _way(row.wish, row.memory),
                row.kernel,
                row.tier,
                _milliseconds(row.ms) + _mark(row.busy),
                f"{row.gmacs:.0f}",
                f"{row.resident_bits_per_weight:.2f}",
                f"{row.load_ms:.1f}",
                "unknown" if fraction is None else f"{100 * fraction:.0f} % {(row.ceiling or '').split()[0]}",
                *ratios,
            ]
        )
    return columns, lines


def times_table(rows: Sequence[Row]) -> Table:
    """Return a line for each layer and way to run it, with everybody's times in milliseconds."""
    names = _baselines(rows)
    ways = list(dict.fromkeys((row.wish, row.memory) for row in rows))
    columns = ["layer", "N", "act", "thr", *map(_short, names), *(_way(*way) for way in ways)]
    lines = []
    for setting, group in groupby(rows, _setting):
        found = {(row.wish, row.memory): row for row in group}
        first = next(iter(found.values()))
        mark = _mark(first.busy)  # who takes turns is disturbed together
        theirs = [
            _milliseconds(first.baselines[name]) + mark if name in first.baselines else "" for name in names
        ]
        ours = [
            "" if way not in found else _milliseconds(found[way].ms) + _mark(found[way].busy) for way in ways
        ]
        lines.append([*setting, *theirs, *ours])
    return columns, lines


def means_table(rows: Sequence[Row]) -> Table:
    """Return for each way to run the network how many times faster its distinct layers are, on average.

    Only layers that are run in that way count: multiplication-free ones are the ternary ones.
    """
    names = _baselines(rows)
    columns = ["N", "act", "thr", "way", "layers", *(f"x {_short(name)}" for name in names)]
    lines = []

    def way(row: Row) -> tuple[object, ...]:
        return _way(row.wish, row.memory), row.activation_bits, row.threads

    sizes = sorted({row.group_size for row in rows if row.group_size is not None}, reverse=True)
    for size in sizes:
        chosen = [row for row in rows if row.group_size in (None, size)]
        for key in dict.fromkeys(map(way, chosen)):
            group = [row for row in chosen if way(row) == key]
            means = [
                geometric_mean([row.baselines[name] / row.ms for row in group if name in row.baselines])
                for name in names
            ]
            mark = _mark(any(row.busy for row in group))
            cells = ["" if mean is None else f"{mean:.2f}{mark}" for mean in means]
            lines.append([str(size), f"int{key[1]}", str(key[2]), str(key[0]), str(len(group)), *cells])
    return columns, lines


def claims_table(rows: Sequence[Row], *, measured: bool = False) -> Table:
    """Return what the kernels are to show, beside what was found.

    Parameters
    ----------
    rows : sequence of Row
    measured : bool
        Leave out what the run holds nothing for.
    """
    lines = [
        [
            claim.what,
            claim.against,
            "" if claim.found is None else f"{claim.found:.2f}{_mark(claim.busy)}",
            "" if claim.at_least is None else f"{claim.at_least:g}",
            f"{claim.aim:g}",
            claim.verdict,
        ]
        for claim in claims(rows)
        if claim.found is not None or not measured
    ]
    return ["what", "against", "found", "at least", "aim", ""], lines


def by_operator(result: Result) -> dict[str, list[Row]]:
    """Return the rows of each operator, in order."""
    found: dict[str, list[Row]] = {}
    for row in result.rows:
        found.setdefault(row.op, []).append(row)
    return found


def _baselines(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row.baselines)
    return sorted(names, key=lambda name: name != FLOAT)


def _short(name: str) -> str:
    return name.removeprefix("onnxruntime ").removeprefix("MatMulNBits ").removesuffix(" int8")


def _way(wish: str, memory: str) -> str:
    return wish if wish == "multiplication-free" else f"{wish}, {memory}"


def _setting(row: Row) -> tuple[str, ...]:
    weights = "int8" if row.group_size is None else str(row.group_size)
    return row.shape, weights, f"int{row.activation_bits}", str(row.threads)


def _count(threads: int) -> str:
    return "one thread" if threads == 1 else f"{threads} threads"


def _milliseconds(ms: float) -> str:
    return f"{ms:.3f}"


def _mark(busy: bool | None) -> str:
    return DISTURBED if busy else ""


def _ratio(other: float | None, ms: float) -> str:
    return "" if other is None else f"{other / ms:.2f}"
