"""External data are read, never mapped: whatever becomes of the file, nothing faults and nothing is wrong."""

import os
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from fgq.errors import ModelError
from fgq.format.external import ExternalTensor, hold, read_in
from fgq.format.onnx_file import load

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4)


def write(folder, array=VALUES):
    tensor = numpy_helper.from_array(array, "w")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save_model(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    return folder / "m.onnx"


def tensor_of(path):
    found = load(path).graph.initializers["w"].const_value
    assert isinstance(found, ExternalTensor)
    return found


def truncate(path):
    os.truncate(path, 4)


def overwrite(path):
    path.write_bytes(bytes(48))


def replace(path):
    other = path.with_name("other")
    other.write_bytes(bytes(48))
    other.replace(path)


CHANGES = [truncate, overwrite, replace, os.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_an_error(change, tmp_path):
    path = write(tmp_path)
    os.utime(tmp_path / "m.data", (1, 1))  # so that the time of an overwriting is another one
    tensor = tensor_of(path)
    assert np.array_equal(tensor.numpy(), VALUES)
    change(tmp_path / "m.data")
    for read in (tensor.numpy, tensor.tobytes, tensor.in_memory, lambda: np.asarray(tensor)):
        with pytest.raises(ModelError, match=r"external data of 'w': .*(changed|cannot be read)"):
            read()


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_held_stays(change, tmp_path):
    path = write(tmp_path)
    model, copy = load(path), load(path)
    hold(model)
    tensor = model.graph.initializers["w"].const_value
    assert np.array_equal(tensor.numpy(), VALUES)
    read_in(copy)
    change(tmp_path / "m.data")
    assert np.array_equal(tensor.numpy(), VALUES)
    assert np.array_equal(copy.graph.initializers["w"].const_value.numpy(), VALUES)
    assert not isinstance(copy.graph.initializers["w"].const_value, ir.ExternalTensor)


@pytest.mark.parametrize(
    "array",
    [
        VALUES,
        VALUES.astype(np.float16),
        VALUES.astype(ml_dtypes.bfloat16),
        VALUES.astype(np.int64),
        VALUES > 3,
        np.array([[-8, 7, 3], [0, 1, 2]], ml_dtypes.int4),
        np.array([1, 0, 3], ml_dtypes.uint2),
        np.float32(3),
        np.zeros((0, 3), np.int8),
    ],
)
def test_every_type_is_read(array, tmp_path):
    array = np.asarray(array)
    tensor = tensor_of(write(tmp_path, array))
    assert tensor.numpy().dtype == array.dtype
    assert np.array_equal(tensor.numpy(), array)
    with open(tmp_path / "copy", "wb") as file:
        tensor.tofile(file)
    assert (tmp_path / "copy").read_bytes() == tensor.tobytes() == (tmp_path / "m.data").read_bytes()


def test_arrays_live_as_long_as_somebody_holds_them(tmp_path):
    tensor = tensor_of(write(tmp_path))
    first = tensor.numpy()
    assert tensor.numpy() is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1


@pytest.mark.parametrize("change", ["os.truncate('c.data', 0)", "open('c.data', 'r+b').write(bytes(20_000))"])
def test_a_session_whose_external_data_change_goes_on(change, tmp_path):
    """New forms of the weights are made for new numbers of rows: a mapping would end the process there."""
    program = f"""
        import os
        import numpy as np, onnx
        import fgq
        rng = np.random.default_rng(0)
        model = onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N,64] x) => (float[N,16] y) '
            '{{ a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v) }}'
        )
        for name, shape in (("w", (64, 64)), ("v", (64, 16))):
            array = rng.standard_normal(shape).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        x = rng.standard_normal((64, 64)).astype(np.float32)
        converted, _ = fgq.convert(model, calibration={{"x": x}}, group_size=4, recipe="fgq")
        whole = converted.SerializeToString()
        onnx.save_model(converted, "c.onnx", save_as_external_data=True, location="c.data", size_threshold=0)
        want = fgq.Session(whole, threads=1).run(None, {{"x": x}})[0]
        session = fgq.Session("c.onnx", threads=1)
        assert np.array_equal(session.run(None, {{"x": x[:1]}})[0], want[:1])
        {change}
        assert np.array_equal(session.run(None, {{"x": x}})[0], want)
        print("equal")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr
