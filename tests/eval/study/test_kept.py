"""What a study keeps: names that say what a file depends on, and files that are read with suspicion."""

from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from fgq.errors import DataError, ModelError
from fgq.eval.study.kept import data_identity, digest, kept, model_digest

TEXT = "(float[N,5] x) => (float y) { y = MatMul(x, w) }"


@dataclass
class Value:
    number: int


def test_a_digest_is_that_of_all_values():
    base = digest(model="a", options={"n": 4, "m": None})
    assert base == digest(options={"m": None, "n": 4}, model="a")
    others = [digest(model="b", options={"n": 4, "m": None}), digest(model="a", options={"n": 5, "m": None})]
    assert len({base, *others}) == 3


def test_a_digest_is_that_of_the_version(monkeypatch):
    before = digest(a=1)
    monkeypatch.setattr("fgq.eval.study.kept.version", lambda name: "99")
    assert digest(a=1) != before


def test_a_model_is_known_by_its_weights_wherever_they_lie(make_model, tmp_path):
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        model = make_model(TEXT, {"w": np.full((5, 3), value, np.float32)})
        onnx.save(model, tmp_path / f"{name}.onnx")
    a, b, c = (model_digest(tmp_path / f"{name}.onnx") for name in "abc")
    assert a == b != c
    found = []
    for value in (1.0, 2.0):
        model = make_model(TEXT, {"w": np.full((5, 3), value, np.float32)})
        onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
        found.append(model_digest(tmp_path / "e.onnx"))
    assert found[0] != found[1]
    with pytest.raises(ModelError, match="none"):
        model_digest(tmp_path / "none.onnx")


def test_data_are_known_by_their_files(tmp_path):
    assert data_identity("characters") == [("characters", 0, 0)]
    file = tmp_path / "data.npz"
    file.write_bytes(b"one")
    before = data_identity(str(file))
    assert before == data_identity(str(tmp_path))
    file.write_bytes(b"three")
    assert data_identity(str(file)) != before


def test_a_value_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return Value(7)

    def read(plain):
        return Value(**plain)

    assert [kept(tmp_path / "v.json", make, read) for _ in range(2)] == [Value(7)] * 2
    assert len(made) == 1


@pytest.mark.parametrize("text", ["", "[1]", '{"other": 1}', "{", "\x00"])
def test_a_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / "v.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"v\.json: found .*remove the file"):
        kept(path, lambda: Value(7), lambda plain: Value(**plain))
