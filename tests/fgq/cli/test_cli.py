"""The commands, as a person types them: what they print, and what they leave on disk."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from fgq.eval import characters

FGQ = Path(sys.executable).with_name("fgq")
COMMANDS = ("convert", "inspect", "eval", "compare", "report", "run", "export", "warmup")

TEXT = """(float[N,3,8,8] x) => (float[N,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, v)
    p = GlobalAveragePool(c)
    q = Flatten(p)
    y = Gemm(q, u)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3), "u": normal(8, 4)}


@pytest.fixture
def folder(make_model, tmp_path, monkeypatch):
    """The current folder, with a small model and data for it."""
    monkeypatch.chdir(tmp_path)
    onnx.save(make_model(TEXT, WEIGHTS), "float.onnx")
    np.savez("x.npz", x=normal(40, 3, 8, 8))
    np.savez("labelled.npz", x=normal(40, 3, 8, 8), labels=np.arange(40) % 4)
    return tmp_path


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The bundled network, converted by the installed command the quick way, and what this printed."""
    path = tmp_path_factory.mktemp("bundled") / "ternary.onnx"
    samples = tmp_path_factory.mktemp("samples") / "images.npz"
    np.savez(samples, image=characters.load("calibration").images[::4])
    arguments = ["convert", characters.MODEL, "-o", path, "--calibration-data", samples]
    done = subprocess.run(
        [FGQ, *arguments, "--group-size", "4", "--recipe", "fgq", "--json"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return path, json.loads(done.stdout)


def plain(outcome):
    """Return what a command printed, if it succeeded and said nothing beside."""
    assert (outcome.code, outcome.err) == (0, "")
    return outcome.out


class TestWithoutModels:
    def test_version(self, command):
        assert plain(command("--version")) == f"fgq {version('fgq')}\n"

    def test_help_lists_the_commands(self, command):
        shown = plain(command("--help"))
        assert all(name in shown for name in COMMANDS)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_help_shows_an_example(self, command, name):
        assert f"Example: fgq {name} " in plain(command(name, "--help"))

    @pytest.mark.parametrize(
        "arguments", [(), ("convert",), ("convert", "m.onnx", "--form", "zip"), ("turn",)]
    )
    def test_wrong_use_is_told_with_the_usage(self, command, arguments):
        outcome = command(*arguments)
        assert outcome.code == 2
        assert "Usage: fgq" in outcome.out + outcome.err
        assert "Traceback" not in outcome.err

    @pytest.mark.parametrize("argument", ["--help", "--version", None])
    def test_stays_light(self, argument):
        script = f"""if True:
            import sys, fgq, fgq.cli
            sys.argv = ["fgq", {argument!r}]
            try:
                fgq.cli.main() if sys.argv[1] else None
            except SystemExit as ended:
                assert not ended.code
            heavy = {{"torch", "numba", "onnxruntime", "onnx", "scipy"}} & set(sys.modules)
            assert not heavy, heavy
        """
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd="/")


class TestBundled:
    def test_convert(self, bundled):
        path, report = bundled
        assert report["totals"]["converted_layers"] == 19
        assert report["converted_bytes"] == path.stat().st_size
        assert report["self_check"]["repeatable"]
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]

    def test_inspect_agrees_with_the_report(self, command, bundled):
        path, report = bundled
        shown = json.loads(plain(command("inspect", path, "--json")))
        assert shown["converted_bytes"] == report["converted_bytes"]
        for mine, theirs in zip(shown["layers"], report["layers"], strict=True):
            for key in ("name", "operator", "shape", "bits_per_weight", "multiplications_removed"):
                assert mine[key] == theirs[key], key

    def test_eval(self, command, bundled):
        data = ["--data", "characters", "--limit", "256", "--engine", "both"]
        rows = json.loads(plain(command("eval", characters.MODEL, bundled[0], *data, "--json")))
        assert [row["engine"] for row in rows] == ["onnxruntime", "fgq"] * 2
        assert [row["samples"] for row in rows] == [256] * 4
        assert rows[0]["difference"] is None
        assert rows[0]["bytes"] == characters.MODEL.stat().st_size
        exact, ternary = rows[0]["measures"]["top1"]["value"], rows[2]["measures"]["top1"]["value"]
        assert exact == rows[1]["measures"]["top1"]["value"]
        assert rows[2]["difference"]["value"] == pytest.approx(ternary - exact)
        assert exact > 0.9
        assert ternary > 0.7  # 85 % when this was written
        assert abs(ternary - rows[3]["measures"]["top1"]["value"]) <= 0.02  # 5 of 256 images

    def test_compare(self, command, bundled):
        arguments = ["compare", characters.MODEL, bundled[0], "--data", "characters", "--limit", "32"]
        errors = json.loads(plain(command(*arguments, "--json")))
        assert errors[-1]["layer"] == "output"
        assert len(errors) == 19
        assert all(0.5 < error["cosine"] <= 1 for error in errors)
        assert "logits" not in plain(command(*arguments)).splitlines()[0]

    def test_run_and_export(self, command, bundled, tmp_path):
        images = characters.load("test").images[:8]
        np.savez(tmp_path / "x.npz", image=images)
        for form in ("int8", "inlined"):
            out = tmp_path / f"{form}.onnx"
            shown = json.loads(plain(command("export", bundled[0], "-o", out, "--form", form, "--json")))
            size = out.stat().st_size
            assert shown == {"output": str(out), "form": form, "bytes": size, "minimum_onnxruntime": "1.17"}
        found = {}
        for name, path, engine in [
            ("ours", bundled[0], "fgq"),
            ("theirs", bundled[0], "onnxruntime"),
            ("int8", tmp_path / "int8.onnx", "onnxruntime"),
        ]:
            out = tmp_path / f"{name}.npz"
            outcome = command("run", path, "--input", tmp_path / "x.npz", "--output", out, "--engine", engine)
            assert "[8, 128]" in plain(outcome)
            found[name] = np.load(out)["logits"]
        np.testing.assert_array_equal(found["theirs"], found["int8"])
        # The last layer is float, so that engines may add its products in another order.
        np.testing.assert_allclose(found["ours"], found["theirs"], rtol=0, atol=1e-4)


class TestConvert:
    def test_prints_what_was_done(self, command, folder):
        shown = plain(command("convert", "float.onnx", "-o", "out.onnx", "--calibration-data", "x.npz"))
        assert "3 of 3 converted, 1 of them ternary" in shown
        assert shown.splitlines()[-1] == "wrote out.onnx"
        assert sorted(os.listdir()) == ["float.onnx", "labelled.npz", "out.onnx", "x.npz"]

    def test_report_file_equals_json(self, command, folder):
        arguments = ["convert", "float.onnx", "-o", "out.onnx", "--calibration-data", "x.npz"]
        shown = plain(command(*arguments, "--report", "report.json", "--json"))
        assert Path("report.json").read_text() == shown

    def test_config_file_and_options(self, command, folder):
        Path("some.toml").write_text('group-size = 4\nactivations = "none"\nform = "int8"\n')
        arguments = ["convert", "float.onnx", "-o", "out.onnx", "--config", "some.toml", "--json"]
        options = json.loads(plain(command(*arguments, "--group-size", "8")))["options"]
        assert (options["group_size"], options["activations"], options["form"]) == (8, "none", "int8")

    def test_dry_run_writes_nothing(self, command, folder):
        before = sorted(os.listdir())
        shown = plain(command("convert", "float.onnx", "-o", "out.onnx", "--dry-run"))
        assert shown.endswith("3 of 3 layers with weights would be converted\n")
        assert sorted(os.listdir()) == before

    def test_data_calibrate_weights_under_float_activations_too(self, command, folder):
        arguments = ["--calibration-data", "missing.npz", "--activations", "none"]
        outcome = command("convert", "float.onnx", "-o", "out.onnx", *arguments)
        assert outcome.code == 2
        assert "missing.npz: found no such file" in " ".join(outcome.err.split())

    def test_replaces_an_older_output(self, command, folder):
        Path("out.onnx").write_text("older")
        plain(command("convert", "float.onnx", "-o", "out.onnx", "--activations", "none"))
        onnx.checker.check_model(onnx.load("out.onnx"))


class TestRun:
    def test_outputs_of_any_name(self, command, make_model, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        model = make_model("(float[N,4] x) => (float y) { y = Neg(x) }")
        names = ["file", "../up", "/a/b", "allow_pickle"]
        model.graph.node.extend(helper.make_node("Identity", ["y"], [name]) for name in names)
        model.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in names)
        onnx.save(model, "m.onnx")
        np.savez("x.npz", x=normal(2, 4))
        shown = json.loads(plain(command("run", "m.onnx", "--input", "x.npz", "--output", "y.npz", "--json")))
        assert shown["arrays"] == {name: [2, 4] for name in ["y", *names]}
        with np.load("y.npz") as found:
            for name in ["y", *names]:
                np.testing.assert_array_equal(found[name], -normal(2, 4))


class TestFixedBatch:
    """Exporters often write models for a batch of one."""

    @pytest.fixture
    def models(self, command, make_model, folder):
        onnx.save(make_model(TEXT.replace("float[N", "float[1"), WEIGHTS), "one.onnx")
        plain(command("convert", "one.onnx", "-o", "ternary.onnx", "--calibration-data", "x.npz"))
        return "one.onnx", "ternary.onnx"

    def test_eval(self, command, models):
        rows = json.loads(plain(command("eval", *models, "--data", "labelled.npz", "--json")))
        same = json.loads(plain(command("eval", "float.onnx", "--data", "labelled.npz", "--json")))
        assert rows[0]["samples"] == 40
        assert rows[0]["measures"] == same[0]["measures"]

    def test_compare(self, command, models):
        errors = json.loads(plain(command("compare", *models, "--data", "x.npz", "--json")))
        assert len(errors) == 3


def test_names_from_a_model_cannot_act_on_the_terminal(command, make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_model(TEXT, WEIGHTS)
    names = ["\x1b[31mred\x07\r\n", "", "[bold red]:car:[/]\\", "", "", "\x9b5m\u202etxt\u2028"]
    shown_names = ["\\x1b[31mred\\x07\\r\\n", "[bold red]:car:[/]\\", "\\x9b5m\\u202etxt\\u2028"]
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = name
    onnx.save(model, "m.onnx")
    np.savez("x.npz", x=normal(4, 3, 8, 8))
    for arguments in [
        ("inspect", "m.onnx"),
        ("convert", "m.onnx", "-o", "out.onnx", "--calibration-data", "x.npz"),
        ("inspect", "out.onnx"),
        ("compare", "m.onnx", "out.onnx", "--data", "x.npz"),
    ]:
        shown = plain(command(*arguments))
        assert all(name in shown for name in shown_names[: 2 if arguments[0] == "compare" else 3])
        assert all(character.isprintable() for character in shown.replace("\n", ""))
        as_json = plain(command(*arguments, "--json"))
        assert as_json.isascii()
        assert "\x1b" not in as_json
        json.loads(as_json)


def test_letters_that_the_terminal_lacks(make_model, tmp_path):
    model = make_model(TEXT, WEIGHTS)
    model.graph.node[0].name = "Schicht\N{GREEK SMALL LETTER ALPHA}"
    onnx.save(model, tmp_path / "m.onnx")
    done = subprocess.run(
        [FGQ, "inspect", "m.onnx"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Schicht\\u03b1" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_progress_on_a_terminal_leaves_the_json_alone(folder):
    import pty

    reader, terminal = pty.openpty()
    arguments = ["convert", "float.onnx", "-o", "out.onnx", "--calibration-data", "x.npz", "--json"]
    seen: list[bytes] = []

    def watch():  # a terminal that nobody reads fills up, and stops who writes to it
        with suppress(OSError):  # Linux says so when the last writer is gone
            while part := os.read(reader, 1 << 16):
                seen.append(part)

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = subprocess.run([FGQ, *arguments], stdout=subprocess.PIPE, stderr=terminal, check=True)
    os.close(terminal)
    watcher.join(60)
    os.close(reader)
    assert json.loads(done.stdout)["totals"]["layers"] == 3
    progress = b"".join(seen)
    assert b"check" in progress or b"calibrate" in progress


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_half_way_leaves_nothing(number, tmp_path):
    """Stopped while the network is calibrated, which takes seconds."""
    out, temporary = tmp_path / "out", tmp_path / "temporary"
    for created in (out, temporary):
        created.mkdir()
    (out / "ternary.onnx").write_text("older")
    command = [
        FGQ,
        "convert",
        characters.MODEL,
        "-o",
        out / "ternary.onnx",
        "--calibration-data",
        "characters",
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:
        deadline = time.monotonic() + 300  # on a machine with much else to do
        while not any(temporary.glob("fgq-*/observed.onnx")) and time.monotonic() < deadline:
            time.sleep(0.01)
        staged = len(list(out.iterdir()))
        process.send_signal(number)
        shown, said = process.communicate(timeout=60)
    assert staged == 2
    assert (process.returncode, shown) == (128 + number, "")
    assert said == f"fgq: error: stopped by {number.name}\n"
    assert list(temporary.iterdir()) == []
    assert [entry.name for entry in out.iterdir()] == ["ternary.onnx"]
    assert (out / "ternary.onnx").read_text() == "older"
