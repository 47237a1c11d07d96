"""From two models and data to files: the whole of `fgq report`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fgq.conversion.files import refuse_model_files, refuse_same_file
from fgq.eval.report.page import render, require_jinja2
from fgq.eval.report.plots import draw_plots, make_folder, require_matplotlib
from fgq.eval.report.study import Findings, study
from fgq.format import onnx_file
from fgq.support.progress import Progress


class Written(NamedTuple):
    """A report and its files.

    Parameters
    ----------
    findings : Findings
    files : list of Path
        The document, then the images.
    """

    findings: Findings
    files: list[Path]


def write_report(
    float_model: Path,
    converted: Path,
    data: str,
    output: Path,
    *,
    plots: Path | None = None,
    limit: int | None = None,
    progress: Progress,
) -> Written:
    """Measure what a conversion did, and write it as one HTML file.

    What can be known to fail is refused before the work.

    Parameters
    ----------
    float_model, converted : Path
    data : str
        As for `fgq.eval.datasets.open_dataset`.
    output : Path
        The document, written whole or not at all.
    plots : Path, optional
        A folder for images, made if it does not exist.
    limit : int, optional
        Only so many samples, the first ones.
    progress : callable
        Called as ``progress(stage, done, total)``.

    Raises
    ------
    ConfigError
        If the extra ``report`` is not installed.
    FgqError
        If a model or the data cannot be used, one model was not converted from the other, or a file cannot
        be written.
    """
    require_jinja2()
    if plots is not None:
        require_matplotlib()
    for model in (float_model, converted):
        refuse_model_files(model, onnx_file.load(model), output)
    refuse_same_file(data, output)
    with onnx_file.staged(output) as path:
        if plots is not None:
            make_folder(plots)
        command = ["fgq", "report", str(float_model), str(converted), "--data", data, "-o", str(output)]
        command += [] if plots is None else ["--plots", str(plots)]
        command += [] if limit is None else ["--limit", str(limit)]
        findings = study(float_model, converted, data, limit=limit, command=command, progress=progress)
        path.write_text(render(findings), encoding="utf-8", newline="\n")
        images = [] if plots is None else draw_plots(findings, plots)
    return Written(findings, [output, *images])
