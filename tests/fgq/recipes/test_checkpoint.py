"""A conversion that was interrupted goes on to the same file, and meets no layers of another."""

import shutil

import numpy as np
import onnx
import pytest

from fgq.config import ConversionConfig
from fgq.conversion.pipeline import convert_file, unfinished_folder
from fgq.converters.float_layers import Layer, find_layers
from fgq.converters.passes import prepare
from fgq.converters.reader import read_float_model
from fgq.errors import ConfigError, OutputError
from fgq.quantization.scheme import WeightScheme
from fgq.recipes import layerwise
from fgq.recipes.checkpoint import Checkpoint

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


@pytest.fixture(scope="module")
def made(make_model, tmp_path_factory):
    """The report of a whole conversion, and in its folder the file and what an interruption leaves."""
    folder = tmp_path_factory.mktemp("made")
    onnx.save(make_model(TEXT, WEIGHTS), folder / "float.onnx")
    report = convert_file(folder / "float.onnx", folder / "whole.onnx", CONFIG, DATA)
    interrupted(folder / "float.onnx", folder / "out.onnx")
    return folder, report


@pytest.fixture
def unfinished(made, tmp_path):
    """What an interruption has left beside ``out.onnx``."""
    folder = unfinished_folder(tmp_path / "out.onnx")
    shutil.copytree(unfinished_folder(made[0] / "out.onnx"), folder)
    return folder


@pytest.fixture
def refined(monkeypatch):
    """The names of the layers whose weights are refined from now on."""
    names = []
    refine = layerwise._refine

    def noting(task, *arguments):
        names.append(task.layer.name)
        return refine(task, *arguments)

    monkeypatch.setattr(layerwise, "_refine", noting)
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


def rewritten(path, **changes):
    """Write a layer's file again with other arrays, None for none, as who does not know its digest would."""
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def swap(one, other):
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


DAMAGES = {
    "cut": lambda one, other: one.write_bytes(one.read_bytes()[:50]),
    "empty": lambda one, other: one.write_bytes(b""),
    "no archive": lambda one, other: one.write_bytes(b"hello"),
    "each other's": swap,
    "codes negated": lambda one, other: rewritten(one, codes0=-np.load(one)["codes0"]),
    "codes of another shape": lambda one, other: rewritten(one, codes0=np.zeros(3, np.int8)),
    "no codes": lambda one, other: rewritten(one, codes0=None),
    "one more": lambda one, other: rewritten(one, more=np.zeros(1)),
    "no digest": lambda one, other: rewritten(one, digest=None),
    "a bias of NaN": lambda one, other: rewritten(one, bias=np.full(8, np.nan, np.float32)),
    "a bias of text": lambda one, other: rewritten(one, bias=np.array(["a"])),
    "row scales of 0": lambda one, other: rewritten(one, row_scale=0 * np.load(one)["row_scale"]),
    "groups beyond the last": lambda one, other: rewritten(one, group=np.load(one)["group"] + 2**30),
    "other warnings": lambda one, other: rewritten(one, warnings=np.array(["\x1b[31mred"])),
    "warnings are a number": lambda one, other: rewritten(one, warnings=np.float32(3)),
    "much text": lambda one, other: rewritten(one, warnings=np.array(["a" * 10**6])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_counts_as_absent(make_model, unfinished, damage):
    model = read_float_model(make_model(TEXT, WEIGHTS))
    prepare(model)
    layers = [layer for layer in find_layers(model) if isinstance(layer, Layer)]
    kept = Checkpoint(unfinished, (unfinished / "conversion.txt").read_text().strip(), resume=True)
    one, other = sorted(unfinished.glob("*.npz"))
    (layer,) = [layer for layer in layers if kept._path(layer) == one]
    scheme = WeightScheme(group_size=4)
    assert kept.read(layer, scheme).weight.shape == layer.shape
    DAMAGES[damage](one, other)
    assert kept.read(layer, scheme) is None


@pytest.mark.parametrize("damage", ["each other's", "codes negated"])
def test_a_damaged_layer_is_quantized_anew(source, made, unfinished, tmp_path, refined, damage):
    whole, report = made
    DAMAGES[damage](*sorted(unfinished.glob("*.npz")))
    again = convert_file(source, tmp_path / "out.onnx", CONFIG, DATA, resume=True)
    assert len(refined) == (3 if damage == "each other's" else 2)
    assert (tmp_path / "out.onnx").read_bytes() == (whole / "whole.onnx").read_bytes()
    assert again.warnings == report.warnings


@pytest.mark.parametrize("text", [None, b"", b"hello", b"\xff\xfe\xff", b"0" * 10**6])
def test_a_damaged_fingerprint_is_refused_and_nothing_lost(source, unfinished, tmp_path, text):
    folder = unfinished
    (folder / "conversion.txt").unlink()
    if text is not None:
        (folder / "conversion.txt").write_bytes(text)
    with pytest.raises(ConfigError, match=r"out.onnx.unfinished: found layers of another .*without --resume"):
        convert_file(source, tmp_path / "out.onnx", CONFIG, DATA, resume=True)
    assert len(list(folder.glob("*.npz"))) == 2


def test_a_folder_that_was_just_made_is_gone_on_from(source, tmp_path, refined):
    folder = unfinished_folder(tmp_path / "out.onnx")
    folder.mkdir()
    convert_file(source, tmp_path / "out.onnx", CONFIG, DATA, resume=True)
    assert len(refined) == 3
    assert not folder.exists()


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("kind", ["other files", "ours and others", "a file", "a link", "a folder inside"])
def test_what_was_not_made_here_is_not_touched(made, tmp_path, kind, resume):
    folder = unfinished_folder(tmp_path / "out.onnx")
    kept = folder / "precious"
    if kind == "a file":
        kept = folder
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
        kept = tmp_path / "elsewhere" / "conversion.txt"
    elif kind == "a folder inside":
        kept = folder / "conversion.txt" / "precious"
        kept.parent.mkdir(parents=True)
    elif kind == "ours and others":
        shutil.copytree(unfinished_folder(made[0] / "out.onnx"), folder)
    else:
        folder.mkdir()
    kept.write_text("precious")
    with pytest.raises(OutputError, match=r"unfinished: found .*move it away"):
        Checkpoint(folder, "key", resume=resume)
    assert kept.read_text() == "precious"
    assert len(list(tmp_path.glob("elsewhere/*"))) == (kind == "a link")
