"""What the command line shows: progress, tables and plain values. Text from a model is never markup."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from fgq.converters.compatibility import ADVISED
from fgq.errors import printable
from fgq.report import LayerReport, Report
from fgq.support import stopping
from fgq.support.progress import Progress as Callback

out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
"""Results; where they are piped, lines are as long as tables need."""

err = Console(stderr=True, highlight=False)
"""Progress and errors, so that results can be piped."""


def as_json(value: Any) -> str:
    """Return plain values as JSON in ASCII, which no terminal and no encoding can misread."""
    return json.dumps(value, indent=2, allow_nan=False)


def print_json(value: Any) -> None:
    """Print plain values as JSON, alone on standard output."""
    print(as_json(value))


def print_line(text: str, *, label: str = "") -> None:
    """Print one line, however long, behind a coloured label."""
    out.print(Text.assemble((label, "yellow"), printable(text)), soft_wrap=True)


class _TimeLeft(ProgressColumn):
    """How long the rest of a stage takes at the mean pace so far."""

    def render(self, task: Task) -> Text:
        if not task.completed or task.total is None or task.elapsed is None:
            return Text()
        seconds = task.elapsed * (task.total / task.completed - 1)
        return Text(f"{timedelta(seconds=int(seconds))} left")


@contextmanager
def progress_bar(overall: str | None = None) -> Iterator[Callback]:
    """Show stages as they are reported on a terminal, and leave nothing behind.

    Parameters
    ----------
    overall : str, optional
        A stage that stays in sight beside the others, with the time left.
    """
    stage_column = TextColumn("{task.description}", markup=False)
    columns = (stage_column, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _TimeLeft())
    shown = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    with stopping.at_stop(_restore_terminal), shown as bar:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int | None) -> None:
            for name, task in tasks.items():
                if name not in (stage, overall):
                    bar.update(task, visible=False)
            if stage not in tasks:
                tasks[stage] = bar.add_task(printable(stage), total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield advance


def _restore_terminal() -> None:
    """Show the cursor again and clear the line, without the locks of what may be drawing it."""
    if err.is_terminal:
        stopping.say("\r\x1b[2K\x1b[?25h")


def print_layers(layers: Sequence[LayerReport], *, converted: bool) -> None:
    """Print a table with a row for each layer; what all names begin with is said once, above.

    Parameters
    ----------
    layers : sequence of LayerReport
    converted : bool
        Whether the weights were quantized, so that their bits, their signal-to-noise ratio and the share of
        multiplications removed are known.
    """
    prefix = _common_path([layer.name for layer in layers])
    # Least widths: at 80 columns names and notes fold, and no column vanishes.
    columns = {"layer": 14, "operator": 8, "shape": 7, "weights": 7, "inputs": 6}
    figures = {"bits": 5, "SNR dB": 6, "removed": 7} if converted else {}
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name, width in (columns | figures | {"note": 8}).items():
        table.add_column(
            name, justify="right" if name in figures else "left", overflow="fold", min_width=width
        )
    for layer in layers:
        cells = [
            layer.name.removeprefix(prefix),
            layer.operator,
            "x".join(map(str, layer.shape)),
            layer.scheme,
            layer.activations,
            *(_figures(layer) if converted else ()),
            layer.reason,
        ]
        table.add_row(*map(_plain, cells), style=None if layer.is_converted else "dim")
    if prefix:
        print_line(f"layers of {prefix}")
    out.print(table)


def _plain(text: str) -> Text:
    """Return a text in which neither markup nor control characters mean anything."""
    return Text(printable(text))


def _common_path(names: Sequence[str]) -> str:
    """Return the path that all names begin with, up to and with its last slash or point."""
    if len(names) < 2:
        return ""
    first, last = min(names), max(names)
    shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[: max(first.rfind("/", 0, shared), first.rfind(".", 0, shared)) + 1]


def _figures(layer: LayerReport) -> list[str]:
    if not layer.is_converted:
        return ["32.00" if layer.shape else "", "", ""]
    ratio = layer.signal_to_noise_db
    return [
        f"{layer.bits_per_weight:.2f}",
        "" if ratio is None else f"{ratio:.1f}",
        f"{100 * layer.multiplications_removed:.1f} %",
    ]


def print_report(report: Report, destination: str) -> None:
    """Print what a conversion did: layers, totals, the self-check and warnings."""
    print_layers(report.layers, converted=True)
    converted = sum(layer.is_converted for layer in report.layers)
    ternary = sum(layer.scheme.startswith("ternary") for layer in report.layers)
    removed = report.multiplications_removed
    facts = {
        "layers": f"{converted} of {len(report.layers)} converted, {ternary} of them ternary",
        "size": f"{_size(report.float_bytes)} -> {_size(report.converted_bytes)} "
        f"({report.bits_per_weight:.2f} bits per weight, scales counted)",
        "multiplications": "unknown" if removed is None else f"{100 * removed:.1f} % removed",
        **_activation_facts(report),
        "runs on": f"onnxruntime {report.minimum_onnxruntime} or newer ({ADVISED} advised), fgq.Session",
        **_check_facts(report),
        **_held_out_facts(report),
    }
    _print_facts(facts)
    for warning in report.warnings:
        print_line(warning, label="warning: ")
    print_line(f"wrote {destination}")


def _activation_facts(report: Report) -> Mapping[str, str]:
    """Say how many bits activations have, and which quantizers clip the most."""
    if not report.quantizers:
        return {}
    bits = report.activation_bits
    count = len(report.quantizers)
    mean = sum(entry.clipped_share for entry in report.quantizers) / count
    worst = max(report.quantizers, key=lambda entry: entry.clipped_share)
    noisiest = min(report.quantizers, key=lambda entry: entry.signal_to_noise_db)
    facts = {
        "activations": f"{'' if bits is None else f'{bits:.2f} bits on average, '}{count} quantizers",
        "clipped": f"{100 * mean:.3f} % of the values on average, at most {100 * worst.clipped_share:.3f} % "
        f"({worst.tensor}, {worst.bits} bits)",
        "noisiest": f"{noisiest.signal_to_noise_db:.1f} dB ({noisiest.tensor}, {noisiest.bits} bits)",
    }
    for what, named in (
        ("two INT4 weights", [layer.name for layer in report.layers if layer.scheme.startswith("dual")]),
        ("two 4-bit inputs", [layer.name for layer in report.layers if layer.activations == "2 x int4"]),
    ):
        if named:
            facts[what] = f"{len(named)} layers: {', '.join(named)}"
    return facts


def _check_facts(report: Report) -> Mapping[str, str]:
    check = report.self_check
    if check is None:
        return {}
    facts = {}
    for output in check.outputs:
        agreement = (
            "equal in onnxruntime and fgq"
            if output.engines_equal
            else f"onnxruntime and fgq differ by {output.engines_difference:.1e} of the largest value"
        )
        facts[f"self-check, {output.name}"] = (
            f"{agreement}; {output.signal_to_noise_db:.1f} dB from the float model "
            f"({check.samples} samples of {check.data})"
        )
    return facts


def _held_out_facts(report: Report) -> Mapping[str, str]:
    facts = {}
    if report.plan is not None and report.plan["takes"]:
        facts["plan"] = ", ".join(
            _PLANNED[name].format(value) for name, value in report.plan["takes"].items()
        )
    check = report.held_out
    if check is not None:
        loss = check.loss
        facts["held out"] = (
            f"{loss.value:.2f} points lost [{loss.low:.2f}, {loss.high:.2f}] ({check.measure}, "
            f"{check.samples} samples)"
        )
    return facts


_PLANNED = {
    "bits": "{:.2f} bits a weight in memory",
    "multiplications": "{:.1%} of the multiplications",
    "latency": "an estimated {:.1%} of float's time",
}


def _print_facts(facts: Mapping[str, str]) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, fact in facts.items():
        grid.add_row(_plain(name), _plain(fact))
    out.print()
    out.print(grid)


def simple_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: int = 1) -> Table:
    """Return a plain table; columns from the `right`-th on are flush right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index >= right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    return table


def step_fields(time: Any) -> dict[str, Any]:
    """Return a step's time as fields for JSON.

    Parameters
    ----------
    time : fgq.runtime.StepTime
    """
    return {
        "step": time.step.name,
        "kernel": time.step.kernel,
        "tier": time.step.tier,
        "onnxruntime_nodes": time.step.nodes,
        "ms": 1000 * time.seconds,
        "output_bytes": time.output_bytes,
        "weight_bytes": time.step.weight_bytes,
    }


def print_profile(times: Sequence[Any]) -> None:
    """Print where the time of a model goes, step by step, and how much of it onnxruntime takes.

    Parameters
    ----------
    times : sequence of fgq.runtime.StepTime
    """
    total = sum(time.seconds for time in times) or 1.0
    rows = [
        [
            str(number),
            time.step.kernel.split("[")[0],
            time.step.tier,
            f"{1e6 * time.seconds:.0f}",
            f"{100 * time.seconds / total:.1f}",
            f"{time.output_bytes:,}",
            f"{time.step.weight_bytes:,}" if time.step.weight_bytes else "",
            time.step.name + (f" ({time.step.nodes} nodes)" if time.step.nodes else ""),
        ]
        for number, time in enumerate(times, 1)
    ]
    columns = ["", "kernel", "tier", "us", "%", "bytes out", "weights", "step"]
    table = simple_table(columns, rows, right=3)
    table.columns[-1].justify = "left"
    out.print(table)
    islands = [time for time in times if time.step.nodes]
    share = sum(time.seconds for time in islands)
    print_line(
        f"{1e3 * total:.2f} ms in {len(times)} steps; onnxruntime runs {len(islands)} parts of "
        f"{sum(time.step.nodes for time in islands)} nodes in {100 * share / total:.0f} % of it"
    )


def print_benchmark(result: Any) -> None:
    """Print what `fgq.eval.bench.kernels.bench_kernels` found: machine, layers, means, and the summary.

    Parameters
    ----------
    result : fgq.eval.bench.kernels.Result
    """
    from fgq.eval.bench import report

    _print_facts(report.machine_facts(result))
    for operator, rows in report.by_operator(result).items():
        _print_titled(f"{operator}: ours", report.kernels_table(rows), right=7)
        _print_titled(f"{operator}: all times, ms", report.times_table(rows))
        if operator == "Conv":
            _print_titled("Conv: geometric means over the layers", report.means_table(rows), right=4)
    columns, claims = report.claims_table(result.rows, measured=True)
    if claims:
        _print_titled("what is to be shown", (columns, claims), right=2)
    if any(row.busy for row in result.rows):
        print_line(f"{report.DISTURBED} other processes were at work, in spite of repetitions")


def _print_titled(
    title: str, table: tuple[Sequence[str], Sequence[Sequence[str]]], *, right: int = 1
) -> None:
    out.print()
    out.print(Text(title, style="bold"))
    out.print(simple_table(*table, right=right))


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
