"""Files that are damaged or hostile are refused; what is written is whole, or nothing is."""

import os
import resource
import signal
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq.errors import ModelError, OutputError, first_line
from fgq.format import onnx_file
from fgq.format.onnx_file import from_proto, load, save, staged

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def external(name="w", location="w.bin", dims=(3, 4), dtype=TensorProto.FLOAT, **entries):
    tensor = TensorProto(
        name=name, dims=dims, data_type=dtype, data_location=TensorProto.EXTERNAL, raw_data=b""
    )
    tensor.ClearField("raw_data")
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_of(*initializers, nodes=None, functions=()):
    nodes = nodes or [helper.make_node("Add", ["x", "w"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 4])],
        initializer=initializers,
    )
    imports = [helper.make_opsetid("", 17)] + [helper.make_opsetid("local", 1)] * bool(functions)
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)


def as_initializer(tensor):
    return model_of(tensor)


def as_constant(tensor):
    return model_of(
        nodes=[
            helper.make_node("Constant", [], ["w"], value=tensor),
            helper.make_node("Add", ["x", "w"], ["y"]),
        ]
    )


def in_subgraph(*nodes, initializers=()):
    body = helper.make_graph(
        list(nodes),
        "body",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [3, 4])],
        initializer=initializers,
    )
    return model_of(
        numpy_helper.from_array(np.array(True), "flag"),
        nodes=[helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)],
    )


def as_subgraph_initializer(tensor):
    return in_subgraph(helper.make_node("Add", ["x", "w"], ["z"]), initializers=[tensor])


def as_subgraph_constant(tensor):
    return in_subgraph(
        helper.make_node("Constant", [], ["w"], value=tensor), helper.make_node("Add", ["x", "w"], ["z"])
    )


def as_function_constant(tensor):
    body = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        helper.make_node("Add", ["a", "w"], ["b"]),
    ]
    function = helper.make_function("local", "Shift", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    return model_of(nodes=[helper.make_node("Shift", ["x"], ["y"], domain="local")], functions=[function])


PLACES = [as_initializer, as_constant, as_subgraph_initializer, as_subgraph_constant, as_function_constant]


@pytest.fixture
def folder(tmp_path):
    """A folder with the external data of `external`, inside another with a file it must not reach."""
    (tmp_path / "secret.bin").write_bytes(VALUES.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").write_bytes(VALUES.tobytes())
    return folder


def write(folder, model):
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refused(folder, model, found):
    path = write(folder, model)
    with pytest.raises(ModelError, match=found) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_every_truncation_is_refused(folder):
    whole = model_of(numpy_helper.from_array(VALUES, "w")).SerializeToString()
    assert load(write(folder, whole)).graph.name == "graph"
    for length in range(len(whole)):
        refused(folder, whole[:length], "empty file|truncated|found no graph|found no opset")


@pytest.mark.parametrize(
    "content", [b"not a model\n", b"{}", b"\x00" * 64, b"\x89PNG\r\n\x1a\n", b"\x08\x08"]
)
def test_other_files_are_refused(folder, content):
    refused(folder, content, "wanted an ONNX model")


def test_random_damage_is_refused_or_read_but_never_crashes(folder):
    whole = model_of(numpy_helper.from_array(VALUES, "w")).SerializeToString()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(400):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            load(write(folder, bytes(damaged)))
            outcomes.add("read")
        except ModelError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_missing_and_unreadable_files_are_refused(tmp_path):
    for path, found in [
        (tmp_path, "found a folder, wanted an ONNX model"),
        (tmp_path / "nowhere.onnx", "found no such file"),
        (tmp_path / ("x" * 300), "cannot be read .File name too long"),
    ]:
        with pytest.raises(ModelError, match=found):
            load(path)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelError, match=r"empty\.onnx: found an empty file"):
        load(str(tmp_path / "empty.onnx"))


@pytest.mark.parametrize("place", PLACES)
def test_external_data_outside_the_folder_are_refused_wherever_they_stand(place, folder):
    outside = folder.parent / "secret.bin"
    os.symlink(outside, folder / "link.bin")
    os.symlink(folder.parent, folder / "up")
    for location in ("../secret.bin", str(outside), "link.bin", "up/secret.bin", "a/../../secret.bin"):
        refused(
            folder, place(external(location=location)), f"external data of 'w': found the path '{location}'"
        )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("tensor", "found"),
    [
        (external(location="gone.bin"), "found no file 'gone.bin' beside the model"),
        (external(location=""), "found no file ''"),
        (external(location="."), "found no file '.'"),
        (external(location="w.bin\0"), "cannot be followed .embedded null byte"),
        (external(location="x" * 300), "cannot be followed .*File name too long"),
        (external(location="ring"), "cannot be followed .Symlink loop"),
        (external(offset=4), "found 48 bytes in 'w.bin', wanted at least 52"),
        (external(dims=(3, 5)), "found 48 bytes in 'w.bin', wanted at least 60"),
        (external(dims=(2**40, 2**40)), "found 48 bytes"),
        (external(length=44), "found a length of 44 bytes, wanted 48"),
        (external(length=52), "found a length of 52 bytes, wanted 48"),
        (external(dims=(-3, 4)), r"tensor 'w': found the shape \[-3, 4\], which is negative"),
        (external(dtype=TensorProto.STRING), "found strings, wanted numbers"),
        (external(offset=-4), "the graph is malformed .*negative"),
        (external(offset="many"), "the graph is malformed .*'many'"),
    ],
)
def test_damaged_external_data_are_refused_wherever_they_stand(place, tensor, found, folder):
    os.symlink("ring", folder / "ring")
    refused(folder, place(tensor), found)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("dims", "raw", "found"),
    [
        ((3, 4), 47, r"tensor 'w': found data that do not fit its type and shape \[3, 4\]"),
        ((3, 4), 44, r"shape \[3, 4\]"),
        ((3, 4), 0, r"shape \[3, 4\]"),
        ((3, 5), 48, r"shape \[3, 5\]"),
        ((2**31, 2**31), 48, "do not fit"),
        ((-1, 4), 48, r"found the shape \[-1, 4\], which is negative"),
    ],
)
def test_damaged_tensors_are_refused_wherever_they_stand(place, dims, raw, found, folder):
    tensor = TensorProto(name="w", dims=dims, data_type=TensorProto.FLOAT, raw_data=VALUES.tobytes()[:raw])
    refused(folder, place(tensor), found)


def test_tensors_of_typed_fields_and_unknown_types_are_checked_too(folder):
    short = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    short.dims[0] = 4
    refused(folder, model_of(short), "do not fit")
    refused(folder, model_of(external(dtype=77)), "the graph is malformed .77 is not a valid DataType")


def test_lists_of_tensors_are_checked_too(folder):
    node = helper.make_node("Custom", ["x"], ["y"], domain="other")
    node.attribute.add(
        name="parts", type=onnx.AttributeProto.TENSORS, tensors=[external(location="../secret.bin")]
    )
    refused(folder, model_of(nodes=[node]), "found the path '../secret.bin'")


def test_a_malformed_graph_is_refused_with_the_reason(folder):
    nodes = [helper.make_node("Identity", ["x"], ["y"])] * 2
    refused(folder, model_of(nodes=nodes), "the graph is malformed .Output 'y' is redeclared")


def test_external_data_need_a_folder():
    with pytest.raises(ModelError, match="model: external data of 'w': found no folder to read them from"):
        from_proto(model_of(external()))
    assert from_proto(model_of(numpy_helper.from_array(VALUES, "w"))).graph.name == "graph"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "tensor",
    [
        external(),
        external(location="sub/../w.bin", offset=0, length=48),
        external(location="inside.bin"),
        numpy_helper.from_array(VALUES, "w"),
    ],
)
def test_a_model_with_external_data_moves_whole_to_another_folder(place, tensor, folder, run, tmp_path):
    (folder / "sub").mkdir()
    os.symlink("w.bin", folder / "inside.bin")
    model = load(write(folder, place(tensor)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save(model, elsewhere / "model.onnx")
    assert os.listdir(elsewhere) == ["model.onnx"]
    x = np.ones((3, 4), np.float32)
    assert np.array_equal(run(elsewhere / "model.onnx", {"x": x})[0], x + VALUES)
    load(elsewhere / "model.onnx")


def test_empty_tensors_need_no_bytes(folder):
    assert load(write(folder, model_of(external(dims=(0, 4))))).graph.initializers["w"].const_value.size == 0


def test_initializers_are_mapped_and_not_loaded(folder):
    model = load(write(folder, model_of(external())))
    assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)


def big_model(folder):
    return load(write(folder, model_of(external(), numpy_helper.from_array(np.arange(99.0), "more"))))


def test_the_same_model_gives_the_same_bytes(folder, tmp_path, monkeypatch):
    for limit, files in ((onnx_file._PROTOBUF_LIMIT, ["m.onnx"]), (100, ["m.onnx", "m.onnx.data"])):
        monkeypatch.setattr(onnx_file, "_PROTOBUF_LIMIT", limit)
        written = []
        for name in ("one", "two"):
            place = tmp_path / f"{name}{limit}"
            place.mkdir()
            save(big_model(folder), place / "m.onnx")
            written.append({file.name: file.read_bytes() for file in place.iterdir()})
        assert sorted(written[0]) == files
        assert written[0] == written[1]


def test_models_beyond_protobuf_keep_their_tensors_beside_them(folder, tmp_path, monkeypatch, run):
    monkeypatch.setattr(onnx_file, "_PROTOBUF_LIMIT", 100)
    place = tmp_path / "out"
    place.mkdir()
    with staged(place / "m.onnx") as path:
        save(big_model(folder), path)
    assert sorted(os.listdir(place)) == ["m.onnx", "m.onnx.data"]
    x = np.ones((3, 4), np.float32)
    assert np.array_equal(run(place / "m.onnx", {"x": x})[0], x + VALUES)
    again = load(place / "m.onnx")
    assert np.array_equal(again.graph.initializers["more"].const_value.numpy(), np.arange(99.0))


def test_a_staged_file_takes_its_place_at_the_end(tmp_path):
    target = tmp_path / "out.onnx"
    target.write_text("old")
    with staged(target) as path:
        assert path.name == target.name
        path.write_text("new")
        path.with_name("out.onnx.data").write_text("data")
        assert target.read_text() == "old"
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "out.onnx": "new",
        "out.onnx.data": "data",
    }


@pytest.mark.parametrize(
    "failure", [ModelError("x"), KeyboardInterrupt(), SystemExit(1), OSError(28, "full")]
)
def test_a_failure_leaves_what_was_there(tmp_path, failure):
    target = tmp_path / "out.onnx"
    target.write_text("old")
    wanted = OutputError if isinstance(failure, OSError) else type(failure)

    def fail():
        with staged(target) as path:
            path.write_text("half")
            raise failure

    with pytest.raises(wanted):
        fail()
    assert os.listdir(tmp_path) == ["out.onnx"]
    assert target.read_text() == "old"


def test_an_interrupt_from_outside_leaves_nothing(tmp_path):
    """A real SIGINT while the file is being written."""
    program = """
        import pathlib, sys, time
        from fgq.format.onnx_file import staged
        with staged(sys.argv[1]) as path:
            path.write_text("half")
            print("writing", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "out.onnx")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path):
    """A file that may not grow beyond 4096 bytes fails as a full disk does, in the middle of the model."""
    (tmp_path / "out.onnx").write_text("old")
    model = model_of(numpy_helper.from_array(np.zeros(9_999, np.float32), "w"))
    source = tmp_path / "source.onnx"
    source.write_bytes(model.SerializeToString())
    program = """
        import resource, sys
        from fgq.errors import OutputError
        from fgq.format.onnx_file import load, save, staged
        model = load(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            with staged(sys.argv[2]) as path:
                save(model, path)
        except OutputError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(source), str(tmp_path / "out.onnx")],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "out.onnx: cannot be written (File too large)" in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "source.onnx"]
    assert (tmp_path / "out.onnx").read_text() == "old"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def enter(path):
    with staged(path):
        raise AssertionError("the path should have been refused")


def test_places_that_cannot_be_written_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, found in [
        (tmp_path, "found a folder, wanted the name of a file"),
        (tmp_path / "nowhere" / "out.onnx", "found no folder '.*nowhere', wanted one that exists"),
        (tmp_path / "pipe", "found a device or pipe, wanted the name of a file"),
        (os.devnull, "/dev/null: found a device or pipe"),
        (tmp_path / ("x" * 300), "cannot be written .File name too long"),
        (tmp_path / ("x" * 255), "cannot be written .File name too long"),
    ]:
        with pytest.raises(OutputError, match=found):
            enter(path)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_folder_in_the_place_of_the_data_leaves_the_model_alone(tmp_path):
    (tmp_path / "out.onnx").write_text("old")
    (tmp_path / "out.onnx.data").mkdir()

    def write_both():
        with staged(tmp_path / "out.onnx") as path:
            path.write_text("new")
            path.with_name("out.onnx.data").write_text("data")

    with pytest.raises(OutputError, match=r"out\.onnx: cannot be written .Is a directory"):
        write_both()
    assert (tmp_path / "out.onnx").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["out.onnx", "out.onnx.data"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one  \n"), "one"),
        (ValueError(), "ValueError"),
        (KeyError("name"), "'name'"),
    ],
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line


def test_a_name_with_a_zero_byte():
    with pytest.raises(OutputError, match="cannot be written"):
        enter("a\0b.onnx")
