"""Hashes against those of the system's own tools, and a command that a shell reads back."""

import hashlib
import shlex
import shutil
import subprocess

import numpy as np
import onnx
import pytest

from fgq.eval.report.provenance import provenance
from fgq.format import onnx_file


@pytest.fixture
def model(make_model, tmp_path):
    path = tmp_path / "a model.onnx"
    onnx.save(make_model("(float[N,3] x) => (float y) { y = Relu(x) }"), path)
    return path


def origin(model, data):
    return provenance(["fgq", "report", str(model)], {model: onnx_file.load(model)}, str(data))


def test_files(model):
    found = origin(model, model)
    assert shlex.split(found.command) == ["fgq", "report", str(model)]
    (only,) = found.inputs  # the data are the same file
    assert (only.name, only.bytes) == (str(model), model.stat().st_size)
    assert only.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert found.versions["numpy"] == np.__version__


def test_external_data_are_hashed(make_model, tmp_path):
    path = tmp_path / "m.onnx"
    model = make_model("(float[N,3] x) => (float y) { y = MatMul(x, w) }", {"w": np.ones((3, 2), np.float32)})
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    found = origin(path, "characters")
    assert {entry.name for entry in found.inputs} == {str(path), str(tmp_path / "w.bin")}


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_folders(model, tmp_path):
    folder = tmp_path / "data"
    for name in ("b/2.bin", "a/1.bin", "c.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    found = origin(model, folder).inputs[-1]
    shell = "sha256sum a/1.bin b/2.bin c.bin | sha256sum"
    printed = subprocess.run(["sh", "-c", shell], cwd=folder, check=True, capture_output=True, text=True)
    assert found.sha256 == printed.stdout.split()[0]
    assert found.bytes == 7 + 7 + 5
