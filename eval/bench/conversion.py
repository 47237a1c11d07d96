"""Time and memory of a conversion: a transformer encoder of random weights, as large as one likes.

Twelve layers of 768 channels have 85 million weights in matrix products, and 100 million with the embedding;
what such weights know is nothing, and takes as long to convert as what trained ones know.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fgq.config import ConversionConfig
from fgq.conversion.pipeline import convert_file
from fgq.kernels.threads import default_threads
from fgq.support.progress import Progress
from fgq.support.temporary import temporary_folder

CHANNELS, HIDDEN, HEADS, TOKENS = 768, 3072, 12, 64
"""Of BERT base, but for the tokens of a text (Devlin et al. 2018, arXiv 1810.04805, section 3)."""

VOCABULARY = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a conversion took.

    Parameters
    ----------
    weights : int
        Of the whole model.
    samples : int
    threads : int
        Processors that the process may use.
    seconds : float
        For all.
    stages : dict of str to float
        Seconds of each stage.
    peak_bytes : int or None
        The most memory that the process has held; None where the system does not tell.
    """

    weights: int
    samples: int
    threads: int
    seconds: float
    stages: dict[str, float]
    peak_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        return asdict(self)


def measure(layers: int, samples: int, config: ConversionConfig, progress: Progress) -> Measured:
    """Convert an encoder of random weights, calibrated on random tokens.

    Parameters
    ----------
    layers : int
    samples : int
        Texts of 64 tokens.
    config : ConversionConfig
    progress : callable
        As for `fgq.conversion.pipeline.convert_file`.
    """
    began: dict[str, float] = {}

    def timed(stage: str, done: int, total: int | None) -> None:
        began.setdefault(stage, time.perf_counter())
        progress(stage, done, total)

    with temporary_folder() as folder:
        path = folder / "encoder.onnx"
        progress("make a model", 0, None)
        weights = _save_encoder(path, layers)
        tokens = np.random.default_rng(1).integers(0, VOCABULARY, (samples, TOKENS))
        start = time.perf_counter()
        convert_file(path, folder / "converted.onnx", config, {"tokens": tokens}, timed)
        end = time.perf_counter()
    bounds = [*began.values(), end]
    return Measured(
        weights=weights,
        samples=samples,
        threads=default_threads(),
        seconds=end - start,
        stages={
            stage: after - before for stage, (before, after) in zip(began, pairwise(bounds), strict=True)
        },
        peak_bytes=_peak_bytes(),
    )


def _save_encoder(path: Path, layers: int) -> int:
    """Write an encoder with layer norms behind its residuals, and return how many weights it has."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[Any]] = {
        "heads": np.array([0, 0, HEADS, CHANNELS // HEADS]),
        "channels": np.array([0, 0, CHANNELS]),
        "scale": np.float32((CHANNELS // HEADS) ** -0.5) * np.ones((), np.float32),
        "root": np.full((), 0.5**0.5, np.float32),
        "one": np.ones((), np.float32),
        "half": np.full((), 0.5, np.float32),
        "embedding": rng.standard_normal((VOCABULARY, CHANNELS), np.float32),
    }

    def add(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def linear(x: str, inputs: int, outputs: int, name: str) -> str:
        constants[f"{name}.weight"] = rng.standard_normal((inputs, outputs), np.float32) / inputs**0.5
        constants[f"{name}.bias"] = 0.02 * rng.standard_normal(outputs, np.float32)
        return add("Add", [add("MatMul", [x, f"{name}.weight"], f"{name}.product"), f"{name}.bias"], name)

    def normalized(x: str, name: str) -> str:
        constants[f"{name}.scale"] = 1 + 0.1 * rng.standard_normal(CHANNELS, np.float32)
        constants[f"{name}.bias"] = 0.1 * rng.standard_normal(CHANNELS, np.float32)
        return add("LayerNormalization", [x, f"{name}.scale", f"{name}.bias"], name, axis=-1)

    def in_heads(x: str, order: list[int], name: str) -> str:
        return add("Transpose", [add("Reshape", [x, "heads"], f"{name}.heads")], name, perm=order)

    x = normalized(add("Gather", ["embedding", "tokens"], "embedded"), "norm")
    for layer in range(layers):
        at = f"layer{layer}"
        q, k, v = (linear(x, CHANNELS, CHANNELS, f"{at}.{which}") for which in ("query", "key", "value"))
        q, k, v = (
            in_heads(each, order, f"{each}.turned")
            for each, order in ((q, [0, 2, 1, 3]), (k, [0, 2, 3, 1]), (v, [0, 2, 1, 3]))
        )
        scores = add("Mul", [add("MatMul", [q, k], f"{at}.products"), "scale"], f"{at}.scores")
        shares = add("Softmax", [scores], f"{at}.shares", axis=-1)
        mixed = add("Transpose", [add("MatMul", [shares, v], f"{at}.mixed")], f"{at}.back", perm=[0, 2, 1, 3])
        joined = add("Reshape", [mixed, "channels"], f"{at}.joined")
        out = linear(joined, CHANNELS, CHANNELS, f"{at}.out")
        x = normalized(add("Add", [out, x], f"{at}.sum1"), f"{at}.norm1")
        wide = linear(x, CHANNELS, HIDDEN, f"{at}.wide")
        erf = add("Erf", [add("Mul", [wide, "root"], f"{at}.rooted")], f"{at}.erf")
        gate = add("Mul", [wide, add("Add", [erf, "one"], f"{at}.gate")], f"{at}.gated")
        narrow = linear(add("Mul", [gate, "half"], f"{at}.gelu"), HIDDEN, CHANNELS, f"{at}.narrow")
        x = normalized(add("Add", [narrow, x], f"{at}.sum2"), f"{at}.norm2")
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["N", TOKENS])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", TOKENS, CHANNELS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return sum(array.size for array in constants.values() if array.dtype == np.float32)


def _peak_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(measured: Measured) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows that a person is shown.

    Parameters
    ----------
    measured : Measured
    """
    peak = "unknown" if measured.peak_bytes is None else f"{measured.peak_bytes / 1e9:.2f} GB"
    facts = {
        "weights": f"{measured.weights / 1e6:.1f} million",
        "samples": str(measured.samples),
        "processors": str(measured.threads),
        "time": f"{measured.seconds:.0f} s",
        **{f"  {stage}": f"{seconds:.0f} s" for stage, seconds in measured.stages.items()},
        "most memory held": peak,
    }
    return ["", ""], [[name, fact] for name, fact in facts.items()]
