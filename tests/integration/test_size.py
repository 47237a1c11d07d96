"""What a ternary weight takes in the file, and that one model always gives one file."""

import os
import subprocess
import sys
from math import ceil, prod

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fgq import convert
from fgq.eval.topologies import SMALL, TOPOLOGIES

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module", params=["small", pytest.param("full", marks=pytest.mark.slow)])
def resnet50(request):
    """Return a ResNet-50 as an ONNX model, two images to calibrate with, and its size."""
    network = TOPOLOGIES["resnet50"](**(SMALL["resnet50"] if request.param == "small" else {}))
    images = {name: tensor.numpy() for name, tensor in network.inputs.items()}
    return network.export("torchscript"), images, request.param


def parts(model):
    """Return shape, codes, alpha and row scales of each ternary weight, as the file has them."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    row_scales = {
        node.input[0]: arrays.get(node.input[1])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    found = []
    for node in model.graph.node:
        if node.op_type == "Unpack":
            codes, _, alpha, _, shape = (arrays[name] for name in node.input)
            found.append((shape.tolist(), codes, alpha, row_scales[node.output[0]]))
    return found


@pytest.mark.parametrize("activations", ["int8", "none"])
@pytest.mark.parametrize("group_size", [4, 16, 64])
def test_bits_per_weight(resnet50, group_size, activations):
    """Five trits a byte, a byte for each group, a float32 for each row; and 1.6 + 8/N bits a weight of it.

    Counted are codes and alpha of the ternary layers. Their row scales come on top: 32/K bits a weight for
    rows of K weights, 0.036 over the whole ResNet-50.
    """
    float_model, images, size = resnet50
    model = convert(float_model, calibration=images, group_size=group_size, activations=activations).model
    layers = parts(model)
    assert len(layers) == {"small": 19, "full": 52}[size]
    for (rows, channels, *taps), codes, alpha, row_scale in layers:
        assert codes.nbytes == ceil(rows * channels * prod(taps) / 5)
        assert alpha.nbytes == rows * ceil(channels / group_size) * prod(taps)
        assert row_scale.nbytes == 4 * rows

    weights = sum(prod(shape) for shape, *_ in layers)
    bits = 8 * sum(codes.nbytes + alpha.nbytes for _, codes, alpha, _ in layers) / weights
    with_row_scales = bits + 8 * sum(row_scale.nbytes for *_, row_scale in layers) / weights
    bytes_of_file = len(model.SerializeToString())
    print(
        f"{size} N={group_size} {activations}: {bits:.4f} bits, {with_row_scales:.4f} with row scales, ",
        end="",
    )
    print(f"{bytes_of_file} bytes in all")
    if size == "full":
        assert bits == pytest.approx(1.6 + 8 / group_size, rel=1e-4)  # every channel count is a multiple
        assert with_row_scales == pytest.approx(bits + 0.036, abs=5e-4)
        # 2.06 million 8-bit weights in the first and the last layer; biases and quantizers.
        assert bytes_of_file < with_row_scales / 8 * weights + 2.7e6


@pytest.mark.parametrize("activations", ["int8", "none"])
def test_no_float_weights_are_left(resnet50, activations):
    float_model, images, _ = resnet50
    model = convert(float_model, calibration=images, activations=activations).model
    most_channels = max(shape[0] for shape, *_ in parts(model))
    tensors = [
        *model.graph.initializer,
        *(
            attribute.t
            for node in model.graph.node
            for attribute in node.attribute
            if attribute.HasField("t")
        ),
    ]
    for tensor in tensors:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            assert len(tensor.dims) <= 1, tensor.name
            assert prod(tensor.dims) <= most_channels, tensor.name


@pytest.mark.parametrize("activations", ["int8", "none"])
def test_same_bytes_twice(resnet50, tmp_path, activations):
    """In this process, and in those that order their sets differently; of as many threads."""
    float_model, images, _ = resnet50
    options = {"activations": activations, "group_size": 16}
    first = convert(float_model, calibration=images, **options).model.SerializeToString()
    onnx.save(float_model, tmp_path / "float.onnx")
    np.savez(tmp_path / "images.npz", **images)
    script = f"""if True:
        import sys, numpy, fgq
        source, data, destination = sys.argv[1:]
        fgq.convert_file(source, destination, fgq.ConversionConfig(**{options}), dict(numpy.load(data)))
    """
    threads = {name: value for name, value in os.environ.items() if name == "OMP_NUM_THREADS"}
    for seed in "12":
        paths = [tmp_path / name for name in ("float.onnx", "images.npz", f"{seed}.onnx")]
        subprocess.run(
            [sys.executable, "-c", script, *map(str, paths)],
            check=True,
            cwd=tmp_path,
            env={"PYTHONHASHSEED": seed, "PATH": "", **threads},
        )
        assert (tmp_path / f"{seed}.onnx").read_bytes() == first
