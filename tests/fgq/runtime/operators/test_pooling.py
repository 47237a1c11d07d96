import numpy as np
import pytest
import torch

from fgq.errors import ModelError
from fgq.runtime import operators
from fgq.runtime.operators.windows import Sliding

RNG = np.random.default_rng(0)


def run(op_type, x, outputs=1, opset=22, **attributes):
    results = operators.find("", op_type)([x], attributes, opset, outputs)
    return results[0] if outputs == 1 else results


def images(rank, dtype, seed):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((2, 3, *rng.integers(5, 10, rank))) * 40).astype(dtype)


def geometry(rank, seed, dilated):
    """Attributes that onnxruntime takes too: neither dilations nor strides beyond the kernel with SAME."""
    rng = np.random.default_rng(seed)
    kernel = rng.integers(1, 4, rank).tolist()
    found = {"kernel_shape": kernel, "strides": rng.integers(1, 4, rank).tolist()}
    if dilated:
        found["dilations"] = rng.integers(1, 3, rank).tolist()
    auto = rng.choice(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
    if auto in ("NOTSET", "VALID") or dilated:
        found["pads"] = [int(rng.integers(0, taps)) for taps in kernel * 2]
        found["ceil_mode"] = int(rng.integers(2))
    else:
        found["auto_pad"] = str(auto)
        found["strides"] = [min(pair) for pair in zip(found["strides"], kernel, strict=True)]
    return found


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.int8])
def test_largest_values(same, rank, dtype):
    for seed in range(12):
        attributes = geometry(rank, seed, dilated=seed % 2)
        same("MaxPool", [images(rank, dtype, seed)], opset=12, **attributes)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_where_the_largest_values_are(same, rank, order, dtype):
    for seed in range(6):
        attributes = geometry(rank, seed, dilated=seed % 2)
        x = images(rank, dtype, seed)
        same("MaxPool", [x], opset=22, outputs=2, storage_order=order, **attributes)


def test_the_first_of_equal_values_counts():
    values, indices = run(
        "MaxPool", np.zeros((1, 1, 3, 3), np.uint8), 2, kernel_shape=[2, 2], pads=[1, 1, 0, 0]
    )
    assert not values.any()
    np.testing.assert_array_equal(indices[0, 0], [[0, 0, 1], [0, 0, 1], [3, 3, 4]])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("include", [0, 1])
@pytest.mark.parametrize("opset", [11, 19, 22])
def test_averages(same, rank, include, opset):
    for seed in range(8):
        attributes = geometry(rank, seed, dilated=seed % 2 and opset >= 19)
        # sums of up to 27 values of some 100, in another order: a few units of 2**-23 * 100
        same(
            "AveragePool", [images(rank, np.float32, seed)], opset=opset, count_include_pad=include,
            rtol=2e-6, atol=5e-5, **attributes,
        )  # fmt: skip


@pytest.mark.parametrize("ceil", [False, True])
def test_averages_of_pytorch(ceil):
    x = images(2, np.float32, 3)
    expected = torch.nn.functional.avg_pool2d(
        torch.from_numpy(x), (3, 2), (2, 2), (1, 1), ceil_mode=ceil, count_include_pad=False
    )
    found = run("AveragePool", x, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=int(ceil))
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-6, atol=5e-5)  # as above


def test_halves_are_summed_in_single_precision():
    x = np.full((1, 1, 64, 64), 100.1, np.float16)
    for found in (run("GlobalAveragePool", x), run("AveragePool", x, kernel_shape=[64, 64])):
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, x[:, :, :1, :1])


def test_whole_channels(same):
    x = images(2, np.float32, 0)
    same("GlobalAveragePool", [x], rtol=2e-6, atol=5e-5)  # as above
    same("GlobalMaxPool", [x])


def test_nan_is_the_largest():
    x = np.zeros((1, 1, 2, 2), np.float32)
    x[0, 0, 1, 1] = np.nan
    assert np.isnan(run("MaxPool", x, kernel_shape=[2, 2])).all()


def test_dilations_count_with_same_padding():
    """As ONNX defines it; onnxruntime pads as if there were none."""
    x = images(2, np.float32, 1)
    found = run("MaxPool", x, kernel_shape=[3, 3], dilations=[2, 2], auto_pad="SAME_UPPER")
    expected = torch.nn.functional.max_pool2d(
        torch.nn.functional.pad(torch.from_numpy(x), (2, 2, 2, 2), value=-1e9), 3, 1, 0, 2
    )
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"kernel_shape": [3]}, r"found a kernel \[3\] or attributes that do not fit an image \[4, 4\]"),
        ({"kernel_shape": [3, 3], "strides": [1]}, "that do not fit an image"),
        ({"kernel_shape": [3, 3], "pads": [1, 1]}, "that do not fit an image"),
        ({"kernel_shape": [5, 5]}, "found an image of 4 with padding 0, wanted at least 5"),
        ({"kernel_shape": [2, 2], "auto_pad": "SAME"}, "auto_pad: found 'SAME', wanted NOTSET, VALID"),
    ],
)
def test_refuses_windows_that_do_not_fit(attributes, message):
    with pytest.raises(ModelError, match=f"MaxPool: .*{message}"):
        run("MaxPool", np.zeros((1, 1, 4, 4), np.float32), **attributes)


def test_windows_reach_no_further_than_padding():
    sliding = Sliding.of((5,), (2,), strides=(2,), pads=(0, 1), ceil_mode=True)
    assert sliding.sizes == (3,)
    taps = dict(sliding.taps(sliding.padded(np.arange(5), -1)))
    assert {tap: values.tolist() for tap, values in taps.items()} == {(0,): [0, 2, 4], (1,): [1, 3, -1]}
