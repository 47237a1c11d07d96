import numpy as np
import pytest
import torch

from fgq.errors import ModelError
from fgq.runtime import operators

RNG = np.random.default_rng(0)
MODES = ["half_pixel", "asymmetric", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners"]
NEAREST = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
SCALES = [0.3, 0.5, 0.6, 0.75, 1.5, 2, 2.3, 3]

# Values of some 100 are sums of up to 16 products with weights that onnxruntime rounds to float32.
CLOSE = {"rtol": 2e-4, "atol": 2e-4}


def ints(*values):
    return np.array(values, np.int64)


def images(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((2, 3, *rng.integers(2, 9, 2))) * 40).astype(dtype)


def floats(*values):
    return np.array(values, np.float32)


def run(*inputs, opset=19, **attributes):
    return operators.find("", "Resize")(inputs, attributes, opset)[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nearest", NEAREST)
def test_the_nearest_value_is_onnxruntimes(same, mode, nearest):
    """Equal positions, or integers would differ."""
    attributes = {"mode": "nearest", "coordinate_transformation_mode": mode, "nearest_mode": nearest}
    for size in (1, 3, 7, 10, 13):
        line = np.arange(size, dtype=np.uint8).reshape(1, 1, 1, size)
        for made in (1, 2, 4, 5, 12, 14, 26):
            same("Resize", [line, None, None, ints(1, 1, 1, made)], opset=19, **attributes)
        for scale in SCALES:
            if size * scale < 1 or (mode == "align_corners" and size * scale % 1):
                continue  # onnxruntime leaves the fraction out, against ONNX's own tests
            same("Resize", [line, None, floats(1, 1, 1, scale)], opset=19, **attributes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_interpolation(same, mode, interpolation):
    attributes = {"mode": interpolation, "coordinate_transformation_mode": mode}
    for seed in range(8):
        x = images(seed=seed)
        sizes = ints(2, 3, *np.random.default_rng(seed).integers(1, 15, 2))
        same("Resize", [x, None, None, sizes], opset=19, **attributes, **CLOSE)
        scales = floats(1, 1, *((2, 3) if mode == "align_corners" else (0.6, 2.3)))
        same("Resize", [x, None, scales], opset=19, **attributes, **CLOSE)
        if interpolation == "cubic":
            same(
                "Resize",
                [x, None, scales],
                opset=19,
                exclude_outside=1,
                cubic_coeff_a=-0.5,
                **attributes,
                **CLOSE,
            )


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("exclude", [0, 1])
def test_antialiasing(same, interpolation, exclude):
    for seed in range(6):
        scales = floats(1, 1, *np.random.default_rng(seed).choice(SCALES[1:], 2))
        same(
            "Resize", [images(seed=seed), None, scales], opset=19, mode=interpolation, antialias=1,
            exclude_outside=exclude, **CLOSE,
        )  # fmt: skip


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_pytorch(mode, antialias):
    x = np.random.default_rng(1).standard_normal((1, 2, 12, 9))
    sizes = (5, 4) if antialias else (7, 20)
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), sizes, mode=mode, antialias=antialias)
    found = run(
        x, None, None, ints(1, 2, *sizes), mode=mode.removeprefix("bi"), antialias=int(antialias),
        # PyTorch's antialiasing takes the cubic of Pillow, and no values from outside
        **({"exclude_outside": 1, "cubic_coeff_a": -0.5} if antialias else {}),
    )  # fmt: skip
    # positions are float32 here: 2**-23 of a position up to 12, times slopes up to 4
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-5)


def test_opset_10(same):
    for seed in range(6):
        scales = floats(1, 1, *np.random.default_rng(seed).choice(SCALES[1:], 2))
        same("Resize", [images(seed=seed), scales], opset=10, mode="nearest")
        same("Resize", [images(seed=seed), scales], opset=10, mode="linear", **CLOSE)


@pytest.mark.parametrize("opset", [11, 13])
def test_inputs_left_empty(same, opset):
    same("Resize", [images(), floats(), floats(1, 1, 2, 2)], opset=opset)
    same("Resize", [images(), floats(), floats() if opset == 11 else None, ints(2, 3, 9, 4)], opset=opset)
    same(
        "Resize",
        [images(), floats(), floats(1, 1, 2, 2)],
        opset=opset,
        coordinate_transformation_mode="tf_half_pixel_for_nn",
    )


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratios(same, policy):
    for seed in range(6):
        sizes = ints(*np.random.default_rng(seed).integers(1, 15, 2))
        same(
            "Resize",
            [images(seed=seed), None, None, sizes],
            opset=19,
            axes=[2, 3],
            keep_aspect_ratio_policy=policy,
        )


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_regions(same, mode):
    roi = floats(0, 0, 0.2, 0.1, 1, 1, 0.9, 1.3)
    for sizes in ((7, 5), (1, 11), (3, 1)):
        same(
            "Resize", [images(seed=5), roi, None, ints(2, 3, *sizes)], opset=19, mode=mode,
            coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=7.0,
            **({} if mode == "nearest" else CLOSE),
        )  # fmt: skip


def test_interpolated_integers_are_rounded():
    """As in ONNX's reference; onnxruntime drops their fraction."""
    line = np.array([0, 10, 255], np.uint8).reshape(1, 1, 1, 3)
    exact = run(line.astype(np.float32), None, floats(1, 1, 1, 3), mode="cubic")
    found = run(line, None, floats(1, 1, 1, 3), mode="cubic")
    np.testing.assert_array_equal(found, np.clip(np.rint(exact), 0, 255))


def test_halves_are_interpolated_in_single_precision():
    x = images(np.float16)
    found = run(x, None, floats(1, 1, 2, 2), mode="linear")
    assert found.dtype == np.float16
    np.testing.assert_array_equal(
        found, run(x.astype(np.float32), None, floats(1, 1, 2, 2), mode="linear").astype(np.float16)
    )


def test_same_size_is_the_same():
    x = images()
    np.testing.assert_array_equal(run(x, None, None, ints(*x.shape), mode="cubic"), x)


@pytest.mark.parametrize(
    "name", ["mode", "nearest_mode", "coordinate_transformation_mode", "keep_aspect_ratio_policy"]
)
def test_refuses_what_onnx_does_not_define(name):
    with pytest.raises(ModelError, match=f"Resize: {name}: found 'area', wanted"):
        run(images(), None, None, ints(2, 3, 6, 9), **{name: "area"})


@pytest.mark.parametrize("sizes", [(), (floats(1, 1, 2, 2), ints(2, 3, 4, 4))])
def test_wants_either_scales_or_sizes(sizes):
    with pytest.raises(ModelError, match="Resize: found scales and sizes or neither, wanted one of them"):
        run(images(), None, *sizes)
