"""Text retrieval with all-MiniLM-L6-v2: what a converted encoder still finds.

::

    python -m fgq.eval.retrieval export -o minilm.onnx
    python -m fgq.eval.retrieval calibration -o texts.npz
    python -m fgq.eval.retrieval evaluate minilm.onnx converted.onnx

The task is that of `fgq.eval.docstrings`: find the rest of a docstring by its first paragraph. Three figures
are given for each model: the mean reciprocal rank, the proportion ranked first, and how far the embeddings
turned away from the first model's, which shows small damage long before the ranks do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from platform import python_version
from typing import Annotated, Any, Protocol

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from fgq.errors import DataError, ModelError, OutputError
from fgq.eval.command import run_command
from fgq.eval.docstrings import docstring_pairs
from fgq.eval.minilm import MAX_TOKENS, export_minilm, tokenize
from fgq.eval.torch_export import save_onnx
from fgq.graph import ort
from fgq.quantization.statistics import Estimate, bootstrap_interval, paired_bootstrap, wilson_interval

BATCH = 32
TABLE_WIDTH = 120


class Session(Protocol):
    """What `embed` needs of a runtime; onnxruntime's InferenceSession has it."""

    def get_inputs(self) -> Sequence[Any]:
        """List the inputs, each with its ``name``."""

    def run(self, output_names: None, feeds: Mapping[str, NDArray[np.int64]]) -> Sequence[Any]:
        """Compute all outputs."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How well one model finds the documents, with 95 % intervals.

    Attributes
    ----------
    reciprocal_rank : Estimate
        Mean of 1 / rank of the right document. A document of equal score counts as ranked before it.
    top1 : Estimate
        Proportion of queries whose right document is ranked first.
    cosine : Estimate
        Mean cosine between this model's embedding of a text and the first model's.
    difference : Estimate
        Mean reciprocal rank less the first model's, on the same queries.
    """

    reciprocal_rank: Estimate
    top1: Estimate
    cosine: Estimate
    difference: Estimate


def calibration_feeds(texts: int = 200) -> dict[str, NDArray[np.int64]]:
    """Give the first calibration documents as inputs of the model.

    Parameters
    ----------
    texts : int
        How many documents at most.

    Returns
    -------
    dict of str to ndarray of int64, each [texts, MAX_TOKENS]
        As `fgq.eval.minilm.tokenize` gives them, all padded to one length.
    """
    return tokenize(docstring_pairs().calibration[:texts], pad_to=MAX_TOKENS)


def embed(session: Session, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts.

    Parameters
    ----------
    session : Session
        Runs a model whose first output is the embedding, float32 [batch, channels].
    texts : sequence of str
        At least one text.

    Returns
    -------
    ndarray of float32, shape [texts, channels]
        Unit vectors.

    Raises
    ------
    ModelError
        If the model has other inputs or another output than a text encoder, or gives NaN, infinity or 0.
    """
    names = [value.name for value in session.get_inputs()]
    parts = []
    for start in range(0, len(texts), BATCH):
        tokens = tokenize(texts[start : start + BATCH])
        unknown = [name for name in names if name not in tokens]
        if unknown:
            raise ModelError(
                f"inputs {unknown}: not known, wanted only {list(tokens)}; export it with this script."
            )
        parts.append(np.asarray(session.run(None, {name: tokens[name] for name in names})[0]))
        if parts[-1].ndim != 2:
            raise ModelError(
                f"embedding: found shape {parts[-1].shape}, wanted [batch, channels]; "
                "export the encoder with this script."
            )
    vectors = np.concatenate(parts)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    broken = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if broken.size:
        raise ModelError(
            f"embedding of text {broken[0]}: found length {lengths[broken[0], 0]}, wanted a finite one; "
            f"{broken.size} of {len(texts)} texts are affected."
        )
    unit: NDArray[np.float32] = (vectors / lengths).astype(np.float32)
    return unit


def evaluate(sessions: Mapping[str, Session], pairs: Sequence[tuple[str, str]]) -> dict[str, Quality]:
    """Measure models against each other and against the first of them.

    Parameters
    ----------
    sessions : mapping of str to Session
        Models by name; the first one, usually in float, is what the others are compared to.
    pairs : sequence of (str, str)
        Query and document, usually the ``test`` of `docstring_pairs`.

    Returns
    -------
    dict of str to Quality
        In the order of `sessions`.

    Raises
    ------
    DataError
        If there are no pairs.
    ModelError
        As `embed`.
    """
    if not pairs:
        raise DataError("retrieval: found no pairs, wanted at least one query with its document.")
    qualities: dict[str, Quality] = {}
    reference: tuple[NDArray[np.float32], NDArray[np.float64]] | None = None
    for name, session in sessions.items():
        queries = embed(session, [query for query, _ in pairs])
        documents = embed(session, [document for _, document in pairs])
        vectors = np.concatenate([queries, documents])
        reciprocal = 1.0 / ranks(queries @ documents.T)
        reference_vectors, reference_reciprocal = reference = reference or (vectors, reciprocal)
        first = int((reciprocal == 1.0).sum())
        cosines = (vectors * reference_vectors).sum(axis=1)
        qualities[name] = Quality(
            reciprocal_rank=Estimate(float(reciprocal.mean()), *bootstrap_interval(reciprocal)),
            top1=Estimate(first / len(pairs), *wilson_interval(first, len(pairs))),
            cosine=Estimate(float(cosines.mean()), *bootstrap_interval(cosines)),
            difference=paired_bootstrap(reciprocal, reference_reciprocal),
        )
    return qualities


def ranks(scores: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Rank of each query's own document among all.

    Parameters
    ----------
    scores : ndarray, shape [n, n]
        Entry [i, j] is the score of document j for query i; document i is the right one.

    Returns
    -------
    ndarray of int64, shape [n]
        From 1, the best. Another document of equal score counts as ranked before the right one, so that a
        model which gives the same vector for everything gets the worst rank.
    """
    above_or_equal: NDArray[np.bool_] = scores >= np.diagonal(scores)[:, None]
    counts: NDArray[np.int64] = above_or_equal.sum(axis=1)
    return counts


app = typer.Typer(help="Text retrieval with all-MiniLM-L6-v2.", add_completion=False)


@app.command("export")
def _export(
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")],
    torchscript: Annotated[bool, typer.Option("--torchscript", help="Use PyTorch's older exporter.")] = False,
) -> None:
    """Write all-MiniLM-L6-v2 as an ONNX file."""
    save_onnx(export_minilm("torchscript" if torchscript else "dynamo"), output)


@app.command("calibration")
def _calibration(
    output: Annotated[Path, typer.Option("-o", "--output", help="NPZ file to write.")],
    texts: Annotated[int, typer.Option(min=1, help="How many texts at most.")] = 200,
) -> None:
    """Write calibration texts as the model's inputs, none of them among the test pairs."""
    feeds = calibration_feeds(texts)
    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **feeds)  # type: ignore[arg-type]
        partial.replace(output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{output}: cannot be written ({error}); choose another place with -o.") from error


@app.command("evaluate")
def _evaluate(
    models: Annotated[list[Path], typer.Argument(help="ONNX files; the others are compared to the first.")],
) -> None:
    """Print how well each model finds the document that belongs to a query."""
    corpus = docstring_pairs()
    qualities = evaluate({str(path): _load(path) for path in models}, corpus.test)
    table = Table(
        title=f"{len(corpus.test)} pairs from the docstrings of Python {python_version()}",
        caption=f"95 % intervals; corpus sha256 {corpus.sha256}",
    )
    table.add_column("model", overflow="fold")
    for heading in ("MB", "reciprocal rank", "top 1", "cosine to first", "rank less first"):
        table.add_column(heading, justify="right", no_wrap=True)
    for path, quality in qualities.items():
        table.add_row(
            path,
            f"{Path(path).stat().st_size / 1e6:.1f}",
            str(quality.reciprocal_rank),
            quality.top1.percent(),
            str(quality.cosine),
            str(quality.difference),
        )
    # Where the output is no terminal, rich takes it for 80 columns wide and would break every interval.
    Console(width=max(TABLE_WIDTH, Console().width)).print(table)


def _load(path: Path) -> Session:
    session: Session = ort.open_session(path, str(path))
    return session


if __name__ == "__main__":
    run_command(app)
