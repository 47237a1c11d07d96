"""Whatever is wrong with what a command is given: one line that says so, exit code 2, nothing written."""

import io
import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq import convert

FGQ = Path(sys.executable).with_name("fgq")

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
X = normal(8, 3, 8, 8)


def normal_with(value):
    weight = WEIGHTS["v"].copy()
    weight[1, 2, 0, 0] = value
    return weight


@pytest.fixture(scope="module")
def contents(make_model):
    """A float model that converts, and the model converted from it."""
    model = make_model(TEXT, WEIGHTS)
    for node in model.graph.node:
        node.name = f"layer_{node.output[0]}"
    converted, _ = convert(model, calibration={"x": X})
    return model, converted


@pytest.fixture
def folder(contents, tmp_path, monkeypatch):
    """The current folder: a model, data that fit it, and a file that must not be lost."""
    for created in ("here", "temporary"):
        (tmp_path / created).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    onnx.save(contents[0], "float.onnx")
    onnx.save(contents[1], "converted.onnx")
    np.savez("x.npz", x=X)
    np.savez("labelled.npz", x=X, labels=np.arange(8) % 4)
    Path("older").write_text("precious")
    return tmp_path


def tree(folder):
    """Return every path below a folder with its content."""
    return {
        path: path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def refused(command, folder):
    """Run a command and check how it is refused; return the line."""

    def check(*arguments, found=""):
        before = tree(folder)
        outcome = command(*arguments)
        assert (outcome.code, outcome.out) == (2, "")
        (line,) = outcome.err.splitlines()
        assert line.startswith("fgq: error: ")
        assert found in line
        assert tree(folder) == before
        return line

    return check


@pytest.fixture
def unconvertible(refused):
    """Try to convert a model over an older file."""

    def check(model, *arguments, found, data="x.npz"):
        calibration = [] if data is None else ["--calibration-data", data]
        return refused("convert", model, "-o", "older", *calibration, *arguments, found=found)

    return check


class TestModelFiles:
    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"", "found an empty file, wanted an ONNX model"),
            (b"<html>404</html>\n", "found a truncated file or one that is not ONNX"),
            (b"\x08\x08", "found no graph"),
        ],
    )
    def test_other_files(self, unconvertible, refused, content, found):
        Path("bad.onnx").write_bytes(content)
        unconvertible("bad.onnx", found=f"bad.onnx: {found}")
        refused("inspect", "bad.onnx", found=found)
        refused("eval", "bad.onnx", "--data", "labelled.npz", found=found)
        refused("compare", "float.onnx", "bad.onnx", "--data", "x.npz", found=found)
        refused("run", "bad.onnx", "--input", "x.npz", "--output", "y.npz", found=found)
        refused("export", "bad.onnx", "-o", "older", "--form", "int8", found=found)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_truncated(self, unconvertible, refused, share):
        whole = Path("float.onnx").read_bytes()
        Path("bad.onnx").write_bytes(whole[: int(share * len(whole))])
        unconvertible("bad.onnx", found="bad.onnx: found")
        refused("inspect", "bad.onnx", found="bad.onnx: found")

    @pytest.mark.parametrize(("model", "found"), [("none.onnx", "no such file"), (".", "found a folder")])
    def test_no_file(self, unconvertible, refused, model, found):
        unconvertible(model, found=found)
        for engine in ("fgq", "onnxruntime"):
            refused("eval", model, "--data", "labelled.npz", "--engine", engine, found=found)

    @pytest.mark.parametrize("opset", [8, 99])
    def test_opset(self, unconvertible, refused, make_model, opset):
        text = "(float[N,8] x) => (float y) { y = MatMul(x, u) }"
        onnx.save(make_model(text, {"u": WEIGHTS["u"]}, opset=opset), "bad.onnx")
        unconvertible("bad.onnx", data=None, found=f"bad.onnx: found opset {opset}, wanted 9 to")
        refused("inspect", "bad.onnx", found=f"found opset {opset}")

    def test_converted_already(self, unconvertible):
        unconvertible("converted.onnx", found="found a model that fgq has converted, wanted a float model")

    @pytest.mark.parametrize("form", ["int8", "inlined"])
    def test_converted_to_another_form(self, command, unconvertible, form):
        assert command("export", "converted.onnx", "-o", "other.onnx", "--form", form).code == 0
        unconvertible("other.onnx", found="found a model that fgq has converted, wanted a float model")

    def test_without_layers(self, unconvertible, make_model):
        onnx.save(make_model("(float[N,3,8,8] x) => (float y) { y = Relu(x) }"), "bad.onnx")
        unconvertible("bad.onnx", found="model: found no layer to convert, wanted at least one (no weights)")

    def test_that_onnxruntime_cannot_load(self, unconvertible, make_model):
        onnx.save(make_model("(float[N,5] x) => (float y) { y = MatMul(x, u) }", WEIGHTS), "bad.onnx")
        line = unconvertible("bad.onnx", "--activations", "none", data=None, found="onnxruntime refuses it")
        assert "Incompatible dimensions" in line
        assert "fgq-" not in line  # no word of temporary files


class TestExternalData:
    @pytest.fixture
    def external(self, contents):
        """Write the model with its weights at some location."""

        def write(location, data=b""):
            model = onnx.ModelProto()
            model.CopyFrom(contents[0])
            for tensor in model.graph.initializer:
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=location)
            Path("bad.onnx").write_bytes(model.SerializeToString())

        return write

    @pytest.mark.parametrize(
        ("location", "found"),
        [
            ("gone.bin", "found no file 'gone.bin' beside the model"),
            ("../secret.bin", "found the path '../secret.bin', wanted one inside the model's folder"),
            ("link.bin", "found the path 'link.bin', wanted one inside the model's folder"),
            ("short.bin", "found 4 bytes in 'short.bin', wanted at least"),
        ],
    )
    def test_refused_in_every_command(self, unconvertible, refused, folder, external, location, found):
        (folder / "secret.bin").write_bytes(bytes(1 << 16))
        Path("link.bin").symlink_to(folder / "secret.bin")
        Path("short.bin").write_bytes(bytes(4))
        external(location)
        unconvertible("bad.onnx", found=found)
        refused("inspect", "bad.onnx", found=found)
        refused("compare", "float.onnx", "bad.onnx", "--data", "x.npz", found=found)
        for engine in ("fgq", "onnxruntime"):
            refused("eval", "bad.onnx", "--data", "labelled.npz", "--engine", engine, found=found)
            files = ("--input", "x.npz", "--output", "older")
            refused("run", "bad.onnx", *files, "--engine", engine, found=found)


class TestWeights:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("activations", ["int8", "none"])
    def test_not_finite(self, unconvertible, contents, value, activations):
        model = onnx.ModelProto()
        model.CopyFrom(contents[0])
        (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "v")
        weight.CopyFrom(numpy_helper.from_array(normal_with(value), "v"))
        onnx.save(model, "bad.onnx")
        found = "layer_c: weights: found 1 of 576 values NaN or infinite, wanted finite ones"
        unconvertible("bad.onnx", "--activations", activations, found=found)

    def test_variance_below_zero(self, unconvertible, make_model):
        """Batch normalization makes NaN of it."""
        text = TEXT.replace("r = Relu(a)", "b = BatchNormalization(a, one, one, one, less)\nr = Relu(b)")
        statistics = {"one": np.ones(8, np.float32), "less": -np.ones(8, np.float32)}
        onnx.save(make_model(text, WEIGHTS | statistics), "bad.onnx")
        unconvertible("bad.onnx", found="216 of 216 values NaN or infinite")


def graph_of(*nodes, weights=(), functions=()):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)


W = ("w", normal(4, 4))
MATMUL = helper.make_node("MatMul", ["x", "w"], ["y"])

MALFORMED = {
    "an input from nowhere": (
        graph_of(helper.make_node("MatMul", ["gone", "w"], ["y"]), weights=[W]),
        "'gone'",
    ),
    "too few inputs": (
        graph_of(helper.make_node("MatMul", ["x"], ["y"])),
        "found 1 inputs, wanted at least 2",
    ),
    "too many inputs": (graph_of(helper.make_node("MatMul", ["x"] * 3, ["y"])), "wanted at most 2"),
    "no outputs": (graph_of(helper.make_node("MatMul", ["x", "w"], []), weights=[W]), "wanted at least 1"),
    "an output twice": (graph_of(MATMUL, MATMUL, weights=[W]), "'y' is redeclared"),
    "a function within itself": (
        graph_of(
            helper.make_node("F", ["x"], ["y"], domain="local"),
            functions=[
                helper.make_function(
                    "local",
                    "F",
                    ["a"],
                    ["b"],
                    [helper.make_node("F", ["a"], ["b"], domain="local")],
                    [helper.make_opsetid("local", 1)],
                )
            ],
        ),
        "Cyclic dependency",
    ),
    "a cycle": (
        graph_of(
            helper.make_node("MatMul", ["b", "w"], ["y"]), helper.make_node("Relu", ["y"], ["b"]), weights=[W]
        ),
        "found a cycle",
    ),
    "an attribute of another type": (
        graph_of(helper.make_node("Softmax", ["x"], ["b"], axis="1"), MATMUL, weights=[W]),
        "Expected: 'INT', actual: 'STRING'",
    ),
    "a scale of nothing": (
        graph_of(
            helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s"], ["d"]),
            helper.make_node("MatMul", ["d", "w"], ["y"]),
            weights=[W, ("s", np.zeros(0, np.float32))],
        ),
        "found a scale or zero point of shape [0]",
    ),
    "an axis that is none": (
        graph_of(helper.make_node("Transpose", ["w"], ["t"], perm=[0, 5]), MATMUL, weights=[W]),
        "out of bounds",
    ),
    "a shape that does not fit": (
        graph_of(
            helper.make_node("Reshape", ["w", "s"], ["t"]),
            helper.make_node("MatMul", ["x", "t"], ["y"]),
            weights=[W, ("s", np.array([3, -1]))],
        ),
        "cannot reshape",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("name", ["convert", "inspect"])
def test_malformed_graphs(refused, unconvertible, case, name):
    model, found = MALFORMED[case]
    Path("bad.onnx").write_bytes(model.SerializeToString())
    if name == "convert":
        unconvertible("bad.onnx", found=found, data=None)
    else:
        refused("inspect", "bad.onnx", found=found)


def test_names_in_errors_cannot_act_on_the_terminal(unconvertible, contents):
    model = onnx.ModelProto()
    model.CopyFrom(contents[0])
    model.graph.node[2].name = "\x1b[2J[red]\nfgq: all is well\x9b5m"
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "v")
    weight.CopyFrom(numpy_helper.from_array(normal_with(np.nan), "v"))
    onnx.save(model, "bad.onnx")
    line = unconvertible("bad.onnx", found=r"\x1b[2J[red]\nfgq: all is well\x9b5m: weights: found 1 of 576")
    assert line.isprintable()


class TestCalibrationData:
    @pytest.mark.parametrize(
        ("arrays", "found"),
        [
            ({"image": X}, "data.npz: found the keys ['image'], wanted ['x'] (the model's inputs)"),
            ({"x": X, "z": X}, "data.npz: found the keys ['x', 'z'], wanted ['x']"),
            ({"x": X[:, :2]}, "data.npz: found x: float32[8, 2, 8, 8], wanted x: float32[samples, 3, 8, 8]"),
            ({"x": X[0]}, "data.npz: found x: float32[3, 8, 8], wanted"),
            ({"x": X.astype(np.float64)}, "data are not cast: save them in the wanted type"),
            ({"x": X[:0]}, "data.npz: found no samples, wanted at least one"),
            ({}, "data.npz: found the keys [], wanted ['x']"),
            ({"x": np.where(X > 2, np.nan, X)}, "NaN or infinite values in 'x', wanted none"),
            ({"x": np.array([{}, {}])}, "found Python objects in 'x', wanted an array of numbers"),
        ],
    )
    def test_arrays(self, unconvertible, arrays, found):
        np.savez("data.npz", **arrays)
        unconvertible("float.onnx", data="data.npz", found=found)

    @pytest.mark.parametrize("share", [0, 0.5, 0.99])
    def test_truncated(self, unconvertible, share):
        whole = Path("x.npz").read_bytes()
        Path("data.npz").write_bytes(whole[: int(share * len(whole))])
        unconvertible("float.onnx", data="data.npz", found="data.npz: found no readable .npz file")

    def test_none(self, unconvertible):
        found = "calibration data: found none, wanted some hundred samples for int8 activations; give"
        unconvertible("float.onnx", data=None, found=found)

    def test_unknown_name(self, unconvertible):
        found = "imagenet: found no such file or folder, wanted one, or the name of a data set (characters"
        unconvertible("float.onnx", data="imagenet", found=found)

    def test_data_set_for_another_model(self, unconvertible):
        found = "characters: found x: float32[1024, 1, 32, 32], wanted x: float32[samples, 3, 8, 8]"
        unconvertible("float.onnx", data="characters", found=found)

    def test_empty_folder(self, unconvertible):
        Path("data").mkdir()
        unconvertible("float.onnx", data="data", found="data: found an empty folder")


class TestOptions:
    @pytest.mark.parametrize(
        ("name", "content", "found"),
        [
            (
                "c.toml",
                "grup-size = 4",
                "c.toml: found the unknown option 'grup-size', wanted one of group_size",
            ),
            ("c.toml", "group-size = ", "c.toml: is not valid TOML"),
            ("c.json", "[1]", "c.json: found a list, wanted a table of options"),
            ("c.toml", "group-size = 2.5", "group_size: found 2.5, wanted a whole number"),
            ("c.toml", 'form = "zip"', "form: found 'zip', wanted one of packed, int8, inlined"),
            ("c.toml", "\0", "c.toml: is not valid TOML"),
        ],
    )
    def test_config(self, unconvertible, name, content, found):
        Path(name).write_text(content)
        unconvertible("float.onnx", "--config", name, found=found)

    def test_no_config(self, unconvertible):
        unconvertible("float.onnx", "--config", "none.toml", found="none.toml: cannot be read (No such file")

    @pytest.mark.parametrize(
        ("option", "value", "found"),
        [
            ("--include", "(", "include: found '(', wanted a regular expression"),
            ("--exclude", "*", "exclude: found '*', wanted a regular expression"),
            (
                "--include",
                "nothing",
                "--include 'nothing': found no layer of that name, wanted at least one of",
            ),
            ("--group-size", "0", "0"),
        ],
    )
    def test_values(self, unconvertible, option, value, found):
        unconvertible("float.onnx", option, value, found=found)


class TestOutputs:
    def test_none(self, refused):
        refused("convert", "float.onnx", found="output: found none, wanted -o OUT, or --dry-run")

    @pytest.mark.parametrize(
        ("output", "found"),
        [
            ("nowhere/out.onnx", "nowhere/out.onnx: found no folder 'nowhere', wanted one that exists"),
            (".", "found a folder, wanted the name of a file to write"),
            ("older/out.onnx", "found no folder 'older', wanted one that exists"),
            ("/dev/null", "/dev/null: found a device or pipe"),
            ("x" * 300, "cannot be written (File name too long)"),
        ],
    )
    def test_places(self, refused, output, found):
        refused("convert", "float.onnx", "-o", output, "--calibration-data", "x.npz", found=found)
        refused("export", "converted.onnx", "-o", output, "--form", "int8", found=found)
        refused("run", "converted.onnx", "--input", "x.npz", "--output", output, found=found)

    @pytest.mark.parametrize("link", [None, os.symlink, os.link])
    def test_the_input_itself(self, refused, link):
        def named(name):
            if link is None:
                return f"./{name}"
            link(name, f"link-{name}")
            return f"link-{name}"

        found = "found the same file as"
        model, data, converted = named("float.onnx"), named("x.npz"), named("converted.onnx")
        refused("convert", "float.onnx", "-o", model, "--calibration-data", "x.npz", found=found)
        refused("convert", "float.onnx", "-o", data, "--calibration-data", "x.npz", found=found)
        refused("export", "converted.onnx", "-o", converted, "--form", "int8", found=found)
        refused("run", "float.onnx", "--input", "x.npz", "--output", model, found=found)
        refused("run", "float.onnx", "--input", "x.npz", "--output", data, found=found)

    @pytest.mark.parametrize(
        ("report", "found"),
        [
            ("nowhere/r.json", "found no folder 'nowhere'"),
            (".", "found a folder"),
            ("older", "found the same file as older"),
            ("float.onnx", "found the same file as float.onnx"),
            ("x.npz", "found the same file as x.npz"),
        ],
    )
    def test_report_is_refused_before_the_work(self, unconvertible, monkeypatch, report, found):
        monkeypatch.setattr(
            "fgq.conversion.pipeline.convert_file", lambda *arguments: pytest.fail("converted")
        )
        unconvertible("float.onnx", "--report", report, found=found)

    def test_report_and_a_new_output_of_one_name(self, refused):
        arguments = ["-o", "new", "--report", "./new", "--calibration-data", "x.npz"]
        refused("convert", "float.onnx", *arguments, found="new: found the same file as new")

    @pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
    @pytest.mark.parametrize(
        ("arguments", "limit"),
        [
            ("convert float.onnx -o older --calibration-data x.npz", 1000),
            ("convert float.onnx -o older --calibration-data x.npz", 4000),  # enough for the float model
            ("convert float.onnx -o older --activations none", 1000),
            ("convert float.onnx -o older --activations none", 4000),
            ("export converted.onnx -o older --form int8", 1000),
            ("run copy.onnx --input x.npz --output older --engine onnxruntime", 1000),
            ("run converted.onnx --input x.npz --output older", 100),
        ],
    )
    def test_full_disk(self, folder, make_model, arguments, limit):
        """No file may grow beyond `limit` bytes, which is what a write to a full disk looks like."""
        onnx.save(make_model("(float[N,3,8,8] x) => (float y) { y = Neg(x) }"), "copy.onnx")
        before = tree(folder)
        done = subprocess.run(
            [FGQ, *arguments.split()],
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
            env={**os.environ, "TMPDIR": str(folder / "temporary")},
        )
        assert (done.returncode, done.stdout) == (2, "")
        *notes, line = done.stderr.splitlines()
        assert line.startswith("fgq: error: ")
        assert "cannot be written (" in line
        assert "File too large" in line
        after = tree(folder)
        unfinished = [path for path in after if "older.unfinished" in str(path)]
        layers = [path for path in unfinished if path.suffix == ".npz"]
        kept = f"fgq: {len(layers)} finished layers are kept in older.unfinished; --resume goes on from them"
        assert notes == [kept] * bool(layers)
        for path in unfinished:
            del after[path]
        assert after == before


def model_of(make_model, body):
    """Return a model without weights, whose output may be a sequence or of strings."""
    model = make_model(f"(float[N,3,8,8] x) => (float y) {{ {body} }}")
    if "Sequence" in body:
        output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
        model.graph.output[0].CopyFrom(output)
    if "strings" in body:
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    return model


class TestEval:
    @pytest.mark.parametrize(
        ("labels", "found"),
        [
            ({}, "evaluation data: found no labels, wanted a class for each sample (key 'labels')"),
            ({"labels": np.arange(8)}, "float.onnx (onnxruntime): found label 7 for a model of 4 classes"),
            (
                {"labels": np.arange(8) - 1},
                "data.npz: found the label -1, wanted one whole number of 0 or more",
            ),
            ({"labels": np.zeros(8)}, "data.npz: found labels float64[8], wanted one whole number"),
            ({"labels": np.zeros(7, int)}, "data.npz: found unequal numbers of samples"),
        ],
    )
    def test_labels(self, refused, labels, found):
        np.savez("data.npz", x=X, **labels)
        refused("eval", "float.onnx", "--data", "data.npz", found=found)

    def test_data(self, refused):
        refused("eval", "float.onnx", "--data", "none", found="none: found no such file or folder")
        refused("eval", "float.onnx", "--data", "characters", found="characters: found x: float32[10240")

    @pytest.mark.parametrize("engine", ["fgq", "onnxruntime"])
    def test_models_of_other_inputs(self, refused, make_model, engine):
        onnx.save(make_model(TEXT.replace("(x", "(z").replace(" x)", " z)"), WEIGHTS), "other.onnx")
        arguments = ["eval", "float.onnx", "other.onnx", "--data", "labelled.npz", "--engine", engine]
        refused(*arguments, found=f"other.onnx ({engine}): cannot run on the samples")

    @pytest.mark.parametrize(
        ("body", "found"),
        [
            ("y = ReduceSum(x)", "found a first output of shape [1, 1, 1, 1] for 8 samples"),
            ("y = SequenceConstruct(x)", "found a first output of list for 8 samples"),
            ("l = Log(x)\ny = Flatten(l)", "found float32 scores that are no numbers"),
        ],
    )
    def test_no_classifier(self, refused, make_model, body, found):
        onnx.save(model_of(make_model, body), "other.onnx")
        refused("eval", "other.onnx", "--data", "labelled.npz", found=f"other.onnx (onnxruntime): {found}")


class TestCompare:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            (
                "(float[N,3,8,8] x) => (float z) { z = Relu(x) }",
                "found no layer and no output that both models",
            ),
            ("(float[N,3,8,8] x) => (float y) { y = Flatten(x) }", "y: found shape [8, 192], wanted [8, 4]"),
            ("(float[N,3,8,8] z) => (float y) { y = Relu(z) }", "other.onnx: cannot run on the samples"),
        ],
    )
    def test_unrelated_models(self, refused, make_model, text, found):
        onnx.save(make_model(text), "other.onnx")
        refused("compare", "float.onnx", "other.onnx", "--data", "x.npz", found=found)

    def test_data(self, refused):
        refused("compare", "float.onnx", "converted.onnx", "--data", "none", found="none: found no such file")


class TestRun:
    @pytest.mark.parametrize(
        ("arrays", "found"),
        [
            ({"z": X}, "data.npz: found the keys ['z'], wanted ['x'] (the model's inputs)"),
            ({"x": X, "z": X}, "data.npz: found the keys ['x', 'z'], wanted ['x']"),
            ({"x": X[:, :2]}, "data.npz: found x: float32[8, 2, 8, 8], wanted x: float32[N, 3, 8, 8]"),
            ({"x": X[0]}, "data.npz: found x: float32[3, 8, 8], wanted"),
            ({"x": X.astype(np.float16)}, "data.npz: found x: float16[8, 3, 8, 8], wanted"),
        ],
    )
    @pytest.mark.parametrize("engine", ["fgq", "onnxruntime"])
    def test_arrays(self, refused, arrays, found, engine):
        np.savez("data.npz", **arrays)
        files = ["--input", "data.npz", "--output", "older", "--engine", engine]
        refused("run", "converted.onnx", *files, found=found)

    def test_no_arrays(self, refused):
        nothing = "found no file but a folder, device or pipe, or nothing"
        for source, reason in (
            ("none.npz", nothing),
            (".", nothing),
            ("older", "found no readable .npz file"),
        ):
            found = f"{source}: {reason}"
            refused("run", "float.onnx", "--input", source, "--output", "y.npz", found=found)

    def test_options(self, refused):
        files = ["--input", "x.npz", "--output", "older"]
        refused("run", "float.onnx", *files, "--engine", "both", found="engine: found both, wanted fgq or")
        refused(
            "run", "float.onnx", *files, "--kernels", "fast", found="kernels: found 'fast', wanted one of"
        )

    @pytest.mark.parametrize("engine", ["fgq", "onnxruntime"])
    @pytest.mark.parametrize("body", ['y = Constant<value_strings=["a"]>()', "y = SequenceConstruct(x)"])
    def test_outputs_that_are_no_numbers(self, refused, make_model, engine, body):
        onnx.save(model_of(make_model, body), "other.onnx")
        files = ["--input", "x.npz", "--output", "older"]
        found = "other.onnx: output 'y': found strings or a sequence, wanted a tensor of numbers"
        refused("run", "other.onnx", *files, "--engine", engine, found=found)


def test_export_of_a_float_model(refused):
    found = "found no packed and no int8 weights, wanted a model converted by fgq convert"
    refused("export", "float.onnx", "-o", "older", "--form", "float", found=found)


class TestPlaces:
    """What is no file, where one is wanted."""

    @pytest.mark.parametrize("found", ["pipe", "zero", "folder.npz", "gone.npz"])
    def test_data(self, unconvertible, refused, found):
        os.mkfifo("pipe")
        Path("zero").symlink_to("/dev/zero")
        Path("folder.npz").mkdir()
        (Path("folder.npz") / "inner.npz").symlink_to("../pipe")
        unconvertible("float.onnx", data=found, found="found no")
        files = ("--input", found, "--output", "older")
        refused(
            "run", "converted.onnx", *files, found="found no file but a folder, device or pipe, or nothing"
        )

    def test_images(self, unconvertible):
        Path("images").mkdir()
        os.mkfifo("images/a.png")
        unconvertible(
            "float.onnx", data="images", found="images/a.png: found no file but a folder, device or pipe"
        )

    def test_two_arrays_of_one_name(self, unconvertible, refused):
        content = io.BytesIO()
        np.save(content, X)
        with zipfile.ZipFile("two.npz", "w") as archive:
            for name in ("x", "x.npy"):
                archive.writestr(name, content.getvalue())
        unconvertible("float.onnx", data="two.npz", found="two.npz: found two arrays named 'x'")
        refused("eval", "float.onnx", "--data", "two.npz", found="two.npz: found two arrays named 'x'")
        refused("run", "converted.onnx", "--input", "two.npz", "--output", "y.npz", found="found two arrays")


def test_a_message_as_long_as_a_file(refused):
    np.savez("long.npz", **{f"n{'o' * 50}{number}": X for number in range(200)})
    line = refused(
        "run", "converted.onnx", "--input", "long.npz", "--output", "y.npz", found="found the keys"
    )
    assert line.endswith(" characters)")
    assert len(line) < 4100
