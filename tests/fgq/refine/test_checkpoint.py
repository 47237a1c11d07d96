"""A conversion that was interrupted goes on to the same file, and meets no layers of another."""

import numpy as np
import onnx
import pytest

from fgq.config import ConversionConfig
from fgq.errors import ConfigError, DataError, OutputError
from fgq.pipeline import convert_file, unfinished_folder
from fgq.refine import network

TEXT = """(float[N,3,8,8] x) => (float[N,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, v)
    s = Add(c, r)
    p = GlobalAveragePool(s)
    q = Flatten(p)
    m = MatMul(q, u)
    y = Add(m, b)
}"""


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3), "u": normal(8, 4), "b": normal(4)}
WEIGHTS["w"][0] = 0  # the second layer, finished before the interruption, is warned of a dead input
DATA = {"x": normal(12, 3, 8, 8)}
CONFIG = ConversionConfig(group_size=4, first_last_int8=False)


@pytest.fixture
def source(make_model, tmp_path):
    onnx.save(make_model(TEXT, WEIGHTS), tmp_path / "float.onnx")
    return tmp_path / "float.onnx"


class Interrupt(BaseException):
    """What a signal raises."""


def interrupted(source, destination, config=CONFIG):
    """Convert until two of the three layers are finished."""

    def progress(stage, done, total):
        if stage == "quantize weights" and done == 2:
            raise Interrupt

    with pytest.raises(Interrupt):
        convert_file(source, destination, config, DATA, progress)


@pytest.fixture
def refined(monkeypatch):
    """The names of the layers whose weights are refined from now on."""
    names = []
    refine = network._refine

    def noting(task, *arguments):
        names.append(task.layer.name)
        return refine(task, *arguments)

    monkeypatch.setattr(network, "_refine", noting)
    return names


@pytest.mark.parametrize("weights", ["ternary", "tied", "int8"])
def test_goes_on_from_the_finished_layers(source, tmp_path, refined, weights):
    config = ConversionConfig(group_size=4, weights=weights, first_last_int8=False)
    whole, resumed = tmp_path / "whole.onnx", tmp_path / "resumed.onnx"
    report = convert_file(source, whole, config, DATA)
    assert len(refined) == 3
    assert not unfinished_folder(whole).exists()
    interrupted(source, resumed, config)
    assert not resumed.exists()
    assert len(list(unfinished_folder(resumed).glob("*.npz"))) == 2
    refined.clear()
    again = convert_file(source, resumed, config, DATA, resume=True)
    assert len(refined) == 1
    assert resumed.read_bytes() == whole.read_bytes()
    assert again.warnings == report.warnings
    assert any("always zero" in warning for warning in report.warnings)
    assert not unfinished_folder(resumed).exists()


def test_without_resume_it_begins_anew(source, tmp_path, refined):
    interrupted(source, tmp_path / "out.onnx")
    refined.clear()
    convert_file(source, tmp_path / "out.onnx", CONFIG, DATA)
    assert len(refined) == 3


def test_nothing_to_go_on_from(source, tmp_path, refined):
    convert_file(source, tmp_path / "out.onnx", CONFIG, DATA, resume=True)
    assert len(refined) == 3


@pytest.mark.parametrize("changed", ["model", "options", "data"])
def test_layers_of_another_conversion(make_model, source, tmp_path, changed):
    interrupted(source, tmp_path / "out.onnx")
    config, data = CONFIG, DATA
    if changed == "model":
        onnx.save(make_model(TEXT, WEIGHTS | {"b": normal(4) + 1}), source)
    elif changed == "options":
        config = ConversionConfig(group_size=8, first_last_int8=False)
    else:
        data = {"x": DATA["x"] + np.float32(1e-3)}
    with pytest.raises(ConfigError, match=r"out.onnx.unfinished: found layers of another .*without --resume"):
        convert_file(source, tmp_path / "out.onnx", config, data, resume=True)
    assert len(list(unfinished_folder(tmp_path / "out.onnx").glob("*.npz"))) == 2


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_file(source, tmp_path, damage):
    interrupted(source, tmp_path / "out.onnx")
    one, other = sorted(unfinished_folder(tmp_path / "out.onnx").glob("*.npz"))
    if damage == "cut":
        one.write_bytes(one.read_bytes()[:50])
    else:
        swapped = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(swapped)
    with pytest.raises(DataError, match="npz"):
        convert_file(source, tmp_path / "out.onnx", CONFIG, DATA, resume=True)


def test_a_folder_of_somebody_else_is_not_touched(source, tmp_path):
    folder = unfinished_folder(tmp_path / "out.onnx")
    folder.mkdir()
    (folder / "precious").write_text("precious")
    with pytest.raises(OutputError, match="move it away"):
        convert_file(source, tmp_path / "out.onnx", CONFIG, DATA)
    assert (folder / "precious").read_text() == "precious"
