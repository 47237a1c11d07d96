"""What onnxruntime tells of its user: nothing is collected, and no device id is written."""

import os
import subprocess
import sys

import onnx
import pytest

SESSION = "import fgq; fgq.Session('m.onnx', allow_float=True)"
CONVERTER = "import fgq; fgq.convert"


@pytest.mark.parametrize("code", [SESSION, CONVERTER])
def test_an_empty_home_stays_empty(code, make_model, tmp_path):
    onnx.save(make_model("(float[N] x) => (float y) { y = Neg(x) }"), tmp_path / "m.onnx")
    for folder in ("home", "temporary"):
        (tmp_path / folder).mkdir()
    suppressing = ("CI", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in suppressing}
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment | places, check=True)
    written = [*(tmp_path / "home").rglob("*"), *(tmp_path / "temporary").rglob("*")]
    assert written == []
