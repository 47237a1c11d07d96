import numpy as np
import pytest
import torch

from fgq.runtime import operators

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((2, 3, 4, 5)) * 3).astype(np.float32)

# Sums of some 10 to 60 float32, in another order: a few units of 2**-23 of results of magnitude 1.
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def run(op_type, *inputs, opset=21, **attributes):
    return operators.find("", op_type)(inputs, attributes, opset)


@pytest.mark.parametrize("opset", [9, 11, 13, 21])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1])
def test_softmax(same, opset, axis):
    if opset == 9 and axis == -1:
        return  # negative axes came with opset 11
    attributes = {} if axis is None else {"axis": axis}
    same("Softmax", [X], opset=opset, **attributes, **CLOSE)


def test_softmax_of_large_and_of_no_values():
    (found,) = run("Softmax", np.array([[1e30, -1e30, 1e30]], np.float32))
    np.testing.assert_array_equal(found, [[0.5, 0, 0.5]])
    assert run("Softmax", np.zeros((2, 0), np.float32))[0].shape == (2, 0)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_layer_normalization(same, axis):
    scale, bias = (RNG.standard_normal(X.shape[axis:]).astype(np.float32) for _ in range(2))
    same("LayerNormalization", [X, scale, bias], axis=axis, outputs=3, **CLOSE)
    same("LayerNormalization", [X, scale], axis=axis, epsilon=0.5, **CLOSE)


def test_halves_are_normalized_in_single_precision():
    x = (X + 100).astype(np.float16)
    scale = np.ones(5, np.float16)
    found, mean, _ = run("LayerNormalization", x, scale)
    expected = torch.nn.functional.layer_norm(torch.from_numpy(x.astype(np.float32)), (5,)).numpy()
    assert (found.dtype, mean.dtype) == (np.float16, np.float32)
    # one rounding to a float16 of magnitude 2 at most
    np.testing.assert_allclose(found, expected, rtol=2**-10, atol=2**-14)
    (weights,) = run("Softmax", x)
    np.testing.assert_array_equal(weights, run("Softmax", x.astype(np.float32))[0].astype(np.float16))


def test_constant_rows_become_the_bias():
    found, _, inverse = run(
        "LayerNormalization",
        np.full((2, 4), 3.0, np.float32),
        np.ones(4, np.float32),
        np.full(4, 7, np.float32),
    )
    np.testing.assert_array_equal(found, 7)
    np.testing.assert_allclose(inverse, 1 / np.sqrt(1e-5), rtol=1e-6)


def test_means(same):
    same("ReduceMean", [X, np.array([1, -1])], opset=18, **CLOSE)
    same("ReduceMean", [X, np.array([2])], opset=18, keepdims=0, **CLOSE)
    same("ReduceMean", [X], opset=18, **CLOSE)
    same("ReduceMean", [X, np.zeros(0, np.int64)], opset=18, keepdims=0, **CLOSE)
    same("ReduceMean", [X, np.zeros(0, np.int64)], opset=18, noop_with_empty_axes=1)
    same("ReduceMean", [X], opset=13, axes=[0, 2], **CLOSE)
    halves = np.full((4096,), 100.1, np.float16)
    assert run("ReduceMean", halves)[0] == halves[:1]


@pytest.mark.parametrize("opset", [9, 15])
def test_batch_normalization(same, opset):
    scale, bias, mean = (RNG.standard_normal(3).astype(np.float32) for _ in range(3))
    statistics = [mean, RNG.uniform(0.1, 2, 3).astype(np.float32)]
    same("BatchNormalization", [X, scale, bias, *statistics], opset=opset, epsilon=1e-3, **CLOSE)


def test_batch_normalization_in_training():
    scale, bias, mean = (RNG.standard_normal(3).astype(np.float32) for _ in range(3))
    variance = RNG.uniform(0.1, 2, 3).astype(np.float32)
    found, *_ = run("BatchNormalization", X, scale, bias, mean, variance, training_mode=1)
    expected = torch.nn.functional.batch_norm(
        torch.from_numpy(X), None, None, torch.from_numpy(scale), torch.from_numpy(bias), training=True
    )
    np.testing.assert_allclose(found, expected.numpy(), **CLOSE)
