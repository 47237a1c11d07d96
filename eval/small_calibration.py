"""What few samples do to layers: the table of docs/recipes.md.

::

    python -m fgq.eval.small_calibration --out docs/recipes.md

The topologies of the tests in their small forms, and the bundled network, are converted with 1, 2, 3 and 5
samples by `calibrated` and by `fgq`. Each layer is compared twice, on all calibration data: on the same
inputs, as the conversion itself measures it, and as `fgq compare` does, each network from its own input on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import onnx
import typer
from numpy.typing import NDArray

from fgq.conversion.pipeline import convert
from fgq.eval import characters
from fgq.eval.command import run_command
from fgq.eval.compare import LayerError, compare
from fgq.eval.datasets import CHARACTERS, open_dataset
from fgq.eval.markdown import check_places, markdown_table, rewrite
from fgq.eval.topologies import SMALL, TOPOLOGIES

COUNTS = (1, 2, 3, 5)

FRESH = 16
"""Samples that no conversion sees."""

Arrays = Mapping[str, NDArray[Any]]


class Outcome(NamedTuple):
    """What a number of samples did to the layers of a network.

    Parameters
    ----------
    layers : int
        Layers whose weights data have chosen.
    farther : int
        Of these, farther from the float output than `fgq` would have them on the same inputs.
    reverted : int
        Of these, with outputs that went back to what `fgq` has.
    compared : int
        Results that `fgq compare` measures.
    farther_compared : int
        Of these, farther than in the network that `fgq` gives, by more than 0.1 dB.
    worst : float
        How much farther in dB the worst of them is.
    gain, fresh_gain : float
        How much nearer the output is than by `fgq`, in dB, on the calibration data and on others.
    """

    layers: int
    farther: int
    reverted: int
    compared: int
    farther_compared: int
    worst: float
    gain: float
    fresh_gain: float


def outcome(model: onnx.ModelProto, data: Arrays, fresh: Arrays, **options: Any) -> Outcome:
    """Convert a network by both recipes and compare their layers.

    Parameters
    ----------
    model : onnx.ModelProto
    data, fresh : mapping of str to ndarray
        Calibration data, and others.
    **options
        Of both conversions.
    """
    plain = convert(model, calibration=dict(data), recipe="fgq", **options).model
    chosen = convert(model, calibration=dict(data), recipe="calibrated", **options)
    with tempfile.TemporaryDirectory(prefix="fgq-") as folder:
        paths = [Path(folder) / f"{name}.onnx" for name in ("float", "fgq", "calibrated")]
        for path, proto in zip(paths, (model, plain, chosen.model), strict=True):
            onnx.save(proto, path)
        errors = [[compare(paths[0], path, dict(arrays)) for path in paths[1:]] for arrays in (data, fresh)]
    gains = [_gains(*pair) for pair in errors]
    measured = [layer for layer in chosen.report.layers if layer.output_error is not None]
    farther = [
        layer for layer in measured if (layer.output_error or 0.0) > (layer.nearest_output_error or 0.0)
    ]
    return Outcome(
        layers=len(measured),
        farther=len(farther),
        reverted=sum(layer.reverted_outputs > 0 for layer in measured),
        compared=len(gains[0]),
        farther_compared=sum(gain < -0.1 for gain in gains[0].values()),
        worst=min(gains[0].values()),
        gain=next(reversed(gains[0].values())),
        fresh_gain=next(reversed(gains[1].values())),
    )


def _gains(plain: Sequence[LayerError], chosen: Sequence[LayerError]) -> dict[str, float]:
    """Return how much nearer each result is, by its tensor's name; the output last."""
    before = {error.name: error.signal_to_noise_db for error in plain}
    return {
        error.name: error.signal_to_noise_db - before[error.name] for error in chosen if error.name in before
    }


def networks() -> Iterator[tuple[str, onnx.ModelProto, Callable[[int, int], Arrays]]]:
    """Yield networks by name, each with a function that makes so many samples, from a seed."""
    test = open_dataset(CHARACTERS, characters.MODEL, "calibration")
    (whole,) = test.batches(len(test))

    def pictures(count: int, seed: int) -> Arrays:
        places = np.random.default_rng(seed).choice(len(test), count, replace=False)
        return {name: array[places] for name, array in whole.items()}

    yield "bundled CNN", onnx.load(characters.MODEL), pictures
    for name, make in TOPOLOGIES.items():
        network = make(**SMALL[name])
        yield name, network.export("torchscript"), _samples(name)


def _samples(name: str) -> Callable[[int, int], Arrays]:
    def images(count: int, seed: int) -> Arrays:
        size = SMALL[name]["image_size"]
        values = np.random.default_rng([seed, count]).standard_normal((count, 3, size, size), np.float32)
        return {"pixel_values": values}

    def texts(count: int, seed: int) -> Arrays:
        rng = np.random.default_rng([seed, count])
        lengths = rng.integers(4, 16, (count, 1), endpoint=True)
        mask = (np.arange(16) < lengths).astype(np.int64)
        words = rng.integers(0, SMALL[name]["vocabulary"], (count, 16)) * mask
        return {"input_ids": words, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}

    return texts if name == "bert" else images


def table(group_size: int) -> str:
    """Return a table of all networks and numbers of samples."""
    rows = []
    for name, model, samples in networks():
        for count in COUNTS:
            found = outcome(model, samples(count, 0), samples(FRESH, 1), group_size=group_size)
            rows.append(
                [
                    name,
                    str(count),
                    f"{found.farther} of {found.layers}",
                    str(found.reverted),
                    f"{found.farther_compared} of {found.compared}",
                    f"{min(found.worst, 0.0):.1f}",
                    f"{found.gain:+.1f}",
                    f"{found.fresh_gain:+.1f}",
                ]
            )
            print(*rows[-1], sep=" | ", flush=True)
    return markdown_table(HEADINGS, rows)


HEADINGS = [
    "network",
    "samples",
    "layers farther than `fgq`",
    "layers with outputs reverted",
    "results farther in `fgq compare`",
    "worst, dB",
    "output, dB",
    "fresh data, dB",
]


def main(
    out: Annotated[Path | None, typer.Option(metavar="FILE.md", help="The document to write to.")] = None,
    group_size: Annotated[int, typer.Option(metavar="N", help="Weights that share one scale.")] = 64,
) -> None:
    """Convert networks with few samples, and count the layers that are worse for it."""
    if out is not None:
        check_places(out, [PLACE])
    found = table(group_size)
    if out is not None:
        rewrite(out, {PLACE: found})


PLACE = "few samples"

if __name__ == "__main__":
    run_command(main)
