import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from fgq.errors import DataError
from fgq.eval.characters import CLASSES, DATA, MODEL, load, read


@pytest.fixture(scope="module")
def model():
    return onnx.load(MODEL)


@pytest.fixture(scope="module")
def weights(model):
    """The weight of each Conv and Gemm by its node's name, as [outputs, inputs, ...]."""
    arrays = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
    return {node.name: arrays[node.input[1]] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}


@pytest.mark.parametrize(("split", "count"), [("calibration", 1024), ("test", 10240)])
def test_a_split_holds_grey_images_of_every_class_in_equal_number(split, count):
    data = load(split)
    assert (data.images.dtype, data.images.shape) == (np.float32, (count, 1, 32, 32))
    assert (data.labels.dtype, data.labels.shape) == (np.int64, (count,))
    assert np.array_equal(np.unique(data.images), np.rint(np.arange(32) * 255 / 31).astype(np.float32) / 255)
    for start in range(0, count, len(CLASSES)):
        assert sorted(data.labels[start : start + len(CLASSES)]) == list(range(len(CLASSES)))


def test_the_splits_share_no_image():
    seen = {image.tobytes() for image in load("calibration").images}
    assert not seen & {image.tobytes() for image in load("test").images}


def test_classes_are_distinct_single_characters():
    assert len(CLASSES) == len(set(CLASSES)) == 128
    assert all(len(character) == 1 for character in CLASSES)
    upper = Counter(character.upper() for character in CLASSES if character in "cosvwxzkpuCOSVWXZKPU")
    assert max(upper.values()) == 1, "letters whose two cases look alike appear once"


def test_the_committed_files_stay_small():
    assert MODEL.stat().st_size <= 8e6
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 20e6


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match=r"'train'.*wanted 'calibration' or 'test'"):
        load("train")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "found no arrays"),
        ({"images": np.zeros((2, 32, 32), np.uint8)}, r"found images uint8\[2, 32, 32\], wanted"),
        ({"images": np.zeros((2, 32, 32), np.uint8), "labels": np.zeros(3, np.int64)}, r"labels int64\[3\]"),
        ({"images": np.zeros((2, 32, 31), np.uint8), "labels": np.zeros(2, np.int64)}, r"\[2, 32, 31\]"),
        ({"images": np.zeros((2, 32, 32)), "labels": np.zeros(2, np.int64)}, "images float64"),
        ({"images": np.zeros((2, 32, 32), np.uint8), "labels": np.array([0, 128])}, "outside 0..127"),
        ({"images": np.zeros((2, 32, 32), np.uint8), "labels": np.array([0, -1])}, "outside 0..127"),
    ],
)
def test_a_file_of_other_arrays_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "images.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "images.npz")


def test_a_file_of_no_images_is_read(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.zeros((0, 32, 32), np.uint8), labels=np.zeros(0, np.int64))
    assert read(tmp_path / "images.npz").images.shape == (0, 1, 32, 32)


def test_the_model_is_a_valid_network_of_plain_layers(model):
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert set(kinds) == {"Conv", "BatchNormalization", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}
    assert kinds["BatchNormalization"] == kinds["Conv"] == 18
    image, logits = model.graph.input[0], model.graph.output[0]
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (image, logits)
    }
    assert shapes == {"image": ["batch", 1, 32, 32], "logits": ["batch", 128]}


def test_batch_normalizations_follow_convolutions_and_carry_trained_statistics(model):
    arrays = {array.name: numpy_helper.to_array(array) for array in model.graph.initializer}
    made_by = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            assert made_by[node.input[0]].op_type == "Conv"
            assert made_by[node.input[0]].name == node.name.replace("bn", "conv")
            _, _, mean, variance = (arrays[name] for name in node.input[1:])
            assert np.all(np.isfinite(mean))
            assert np.any(mean != 0)
            assert np.all(variance >= 0)
            assert np.any(variance != 1)


def test_most_weights_have_many_input_channels(weights):
    total = sum(weight.size for weight in weights.values())
    assert 1.6e6 <= total <= 1.9e6
    assert sum(weight.size for weight in weights.values() if weight.shape[1] >= 64) >= 0.9 * total
    assert sum(weight.size for weight in weights.values() if weight.shape[1] >= 128) >= 0.5 * total


def test_kernels_of_one_and_of_nine_pixels_with_and_without_stride_appear(model, weights):
    strides = {
        node.name: next(list(a.ints) for a in node.attribute if a.name == "strides")
        for node in model.graph.node
        if node.op_type == "Conv"
    }
    seen = {(weights[name].shape[2], stride[0]) for name, stride in strides.items()}
    assert seen == {(1, 1), (1, 2), (3, 1), (3, 2)}


def test_the_model_recognises_most_characters_but_not_all():
    test = load("test")
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": test.images[:2000]})
    assert logits.dtype == np.float32
    top1 = np.mean(logits.argmax(1) == test.labels[:2000])
    assert 0.85 <= top1 <= 0.97


def test_loading_needs_neither_torch_nor_pillow():
    program = """
import sys
import fgq.eval.characters
fgq.eval.characters.load("calibration")
print({"torch", "PIL"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.strip() == "set()"
