"""A small network with its converted forms, and data for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from fgq import convert
from fgq.eval.report.study import Findings, study

TEXT = """(float[N,3,8,8] x) => (float[N,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w, c)
    r = Relu(a)
    d = Conv<pads=[1,1,1,1]>(r, v)
    s = Add(r, d)
    t = Conv(s, z)
    p = GlobalAveragePool(t)
    q = Flatten(p)
    m = MatMul(q, u)
    y = Add(m, b)
}"""


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(8, 3, 3, 3), "c": normal(8), "v": normal(8, 8, 3, 3), "z": normal(6, 8, 1, 1)}
WEIGHTS |= {"u": normal(6, 5), "b": normal(5)}
X = normal(70, 3, 8, 8)


class Files(NamedTuple):
    """A float model, a converted one, and data with and without labels."""

    float_model: Path
    converted: Path
    labelled: Path
    plain: Path


@pytest.fixture(scope="session")
def write_files(make_model: Callable[..., onnx.ModelProto]) -> Callable[..., Files]:
    """Convert a network and write both, with data; names may be chosen for its nodes."""

    def write(folder: Path, rename: Callable[[str], str] = "layer_{}".format, **options: Any) -> Files:
        model = make_model(TEXT, WEIGHTS)
        for node in model.graph.node:
            node.name = rename(node.output[0])
        files = Files(
            *(folder / name for name in ("float.onnx", "converted.onnx", "labelled.npz", "plain.npz"))
        )
        onnx.save(model, files.float_model)
        onnx.save(convert(model, calibration={"x": X}, **options).model, files.converted)
        np.savez(files.labelled, x=X, labels=np.arange(len(X)) % 5)
        np.savez(files.plain, x=X)
        return files

    return write


@pytest.fixture(scope="session")
def files(write_files: Callable[..., Files], tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Converted with groups of four; one layer is excluded."""
    return write_files(tmp_path_factory.mktemp("report"), group_size=4, exclude="layer_t")


def silent(stage: str, done: int, total: int | None) -> None:
    """Show no progress."""


@pytest.fixture(scope="session")
def findings(files: Files) -> Findings:
    """What a report on labelled data says."""
    command = ["fgq", "report", str(files.float_model), str(files.converted), "--data", str(files.labelled)]
    return study(
        files.float_model, files.converted, str(files.labelled), limit=None, command=command, progress=silent
    )
