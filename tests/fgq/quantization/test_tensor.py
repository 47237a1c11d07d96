"""The equation against loops and onnxruntime's DequantizeLinear; every broken invariant is found."""

import dataclasses
import itertools

import numpy as np
import pytest

from fgq.errors import WeightError
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.quantization.tensor import MAX_REDUCTION, Plane, QuantizedTensor

SHAPE = (6, 7, 3)


def tensor_of(shape=SHAPE, group_axis=1, channel_axis=0, group_size=3, count=1, **changes):
    """A valid ternary tensor of random codes; the last of its groups is shorter."""
    rng = np.random.default_rng(3)
    group = (np.arange(shape[group_axis]) // group_size).astype(np.int32)
    of_groups = list(shape)
    of_groups[group_axis] = int(group[-1]) + 1
    fields = {
        "planes": tuple(
            Plane(
                codes=rng.integers(-1, 2, shape, dtype=np.int8),
                alpha=rng.integers(0, 127 // count, of_groups, dtype=np.uint8, endpoint=True),
            )
            for _ in range(count)
        ),
        "group": group,
        "group_axis": group_axis,
        "channel_axis": channel_axis,
        "row_scale": rng.uniform(0.5, 2, shape[channel_axis]).astype(np.float32),
        "scheme": WeightScheme(group_size=group_size),
    }
    return QuantizedTensor(**fields | changes)


LAYOUTS = [
    ((6, 7, 3), 1, 0),
    ((7, 6), 0, 1),
    ((2, 7, 5), 1, 2),
    ((2, 5, 7), 2, 1),
    ((7, 4, 2, 2), 0, 1),
    ((1, 1), 0, 1),
]


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize(("shape", "group_axis", "channel_axis"), LAYOUTS)
def test_w8_and_the_weights_are_those_of_the_equation(shape, group_axis, channel_axis, planes):
    tensor = tensor_of(shape, group_axis, channel_axis, count=planes)
    tensor.validate()
    w8, weights = tensor.int8(), tensor.dequantize()
    assert (w8.dtype, weights.dtype) == (np.int8, np.float32)
    assert w8.shape == weights.shape == tensor.shape == shape
    for place in itertools.product(*map(range, shape)):
        of_group = list(place)
        of_group[group_axis] = tensor.group[place[group_axis]]
        wanted = sum(int(p.alpha[tuple(of_group)]) * int(p.codes[place]) for p in tensor.planes)
        assert w8[place] == wanted
        assert weights[place] == np.float32(wanted) * tensor.row_scale[place[channel_axis]]
    assert tensor.rows == shape[channel_axis]
    assert tensor.groups == -(-shape[group_axis] // 3)
    assert tensor.zero_share == np.mean(w8 == 0)


@pytest.mark.parametrize(("shape", "group_axis", "channel_axis"), LAYOUTS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_onnxruntime_dequantizes_to_the_same_weights(
    shape, group_axis, channel_axis, per_channel, make_model, run
):
    tensor = tensor_of(shape, group_axis, channel_axis)
    if not per_channel:
        tensor = dataclasses.replace(tensor, row_scale=np.array(0.3, np.float32))
    tensor.validate()
    model = make_model(
        f"(float[1] x) => (float w) {{w = DequantizeLinear <axis = {channel_axis}> (w8, scale)}}",
        {"w8": tensor.int8(), "scale": tensor.row_scale},
    )
    (found,) = run(model, {"x": np.zeros(1, np.float32)})
    assert np.array_equal(found, tensor.dequantize())  # one float32 product each, so equal


@pytest.mark.parametrize("shared", [(1, 3, 3), (6, 3, 1), (1, 3, 1)])
def test_alpha_may_be_shared_along_any_axis_but_that_of_the_groups(shared):
    codes = tensor_of().planes[0].codes
    alpha = np.random.default_rng(0).integers(0, 128, shared, dtype=np.uint8)
    tensor = tensor_of(planes=(Plane(codes=codes, alpha=alpha),))
    tensor.validate()
    full = tensor_of(planes=(Plane(codes=codes, alpha=np.broadcast_to(alpha, (6, 3, 3))),))
    assert np.array_equal(tensor.int8(), full.int8())


def test_the_longest_reduction_stays_inside_an_int32():
    assert MAX_REDUCTION * 255 * 127 < 2**31


def with_codes(**changes):
    """Fields with another codes or alpha array in the place of the valid one."""
    plane = tensor_of().planes[0]
    return {"planes": (dataclasses.replace(plane, **changes),)}


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


VALID = tensor_of()
CODES, ALPHA = VALID.planes[0].codes, VALID.planes[0].alpha
GROUP, SCALE = VALID.group, VALID.row_scale
WIDE = Plane(codes=np.ones(SHAPE, np.int8), alpha=np.full((6, 3, 3), 64, np.uint8))


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        ({"planes": ()}, "planes: found none"),
        ({"group_axis": 3}, "found group axis 3 .* rank 3"),
        ({"group_axis": -2}, "found group axis -2"),
        ({"channel_axis": 3}, "channel axis 3"),
        ({"channel_axis": -1}, "channel axis -1"),
        ({"channel_axis": 1}, "found 1 for groups and channels"),
        ({"group": GROUP.astype(np.int64)}, r"group: found int64\[7\], wanted int32\[7\]"),
        ({"group": GROUP[:-1]}, r"found int32\[6\]"),
        ({"group": GROUP[:, None]}, r"found int32\[7, 1\]"),
        ({"group": GROUP + np.int32(1)}, "gaps or a decrease"),
        ({"group": GROUP - np.int32(1)}, "gaps or a decrease"),
        ({"group": changed(GROUP, 3, 2)}, "gaps or a decrease"),
        (
            {"group": changed(GROUP, slice(5, 7), [2, 3])},
            r"plane 0 alpha: found uint8\[6, 3, 3\], wanted uint8\[6, 4, 3\]",
        ),
        ({"group": np.zeros(7, np.int32)}, r"wanted uint8\[6, 1, 3\]"),
        (with_codes(codes=CODES.astype(np.int16)), r"plane 0 codes: found int16\[6, 7, 3\]"),
        (
            with_codes(codes=changed(CODES, (5, 6, 2), 2)),
            "plane 0 codes: found magnitude 2, wanted at most 1",
        ),
        (with_codes(codes=changed(CODES, (0, 0, 0), -128)), "found magnitude 128"),
        (with_codes(alpha=ALPHA.astype(np.int8)), r"plane 0 alpha: found int8\[6, 3, 3\]"),
        (with_codes(alpha=ALPHA[:, :2]), r"found uint8\[6, 2, 3\], wanted uint8\[6, 3, 3\]"),
        (with_codes(alpha=ALPHA[:, :1]), r"found uint8\[6, 1, 3\]"),
        (with_codes(alpha=ALPHA[:2]), r"found uint8\[2, 3, 3\]"),
        (with_codes(alpha=ALPHA[..., None]), r"found uint8\[6, 3, 3, 1\]"),
        (with_codes(alpha=changed(ALPHA, (1, 1, 1), 128)), "plane 0 alpha: found 128, wanted at most 127"),
        ({"scheme": WeightScheme(weight_limit=63)}, "plane 0 alpha: found 12., wanted at most 63"),
        ({"scheme": WeightScheme(codes=Codes.INT8)}, "plane 0 alpha: found 12., wanted at most 1"),
        ({"planes": (VALID.planes[0], Plane(codes=CODES[1:], alpha=ALPHA[1:]))}, "plane 1 codes"),
        ({"planes": (WIDE, WIDE)}, "w8: found magnitude 128, wanted at most 127"),
        ({"row_scale": SCALE.astype(np.float64)}, r"row scale: found float64\[6\]"),
        ({"row_scale": SCALE[:1]}, r"found float32\[1\], wanted float32\[6\] or a scalar"),
        ({"row_scale": SCALE[:, None]}, r"found float32\[6, 1\]"),
        *(
            ({"row_scale": changed(SCALE, 4, value)}, "row scale: found a value that is not positive")
            for value in (0.0, -1.0, np.inf, np.nan)
        ),
        ({"row_scale": np.array(0, np.float32)}, "row scale: found a value that is not positive"),
    ],
)
def test_every_broken_invariant_is_found(broken, found):
    VALID.validate()
    with pytest.raises(WeightError, match=found):
        dataclasses.replace(VALID, **broken).validate()


def test_an_axis_without_positions_has_no_groups():
    plane = Plane(codes=np.zeros((6, 0), np.int8), alpha=np.zeros((6, 0), np.uint8))
    tensor = tensor_of(planes=(plane,), group=np.zeros(0, np.int32))
    with pytest.raises(WeightError, match="group: found no positions"):
        tensor.validate()


def test_planes_may_cancel_inside_the_range():
    against = Plane(codes=-WIDE.codes, alpha=WIDE.alpha)
    tensor = tensor_of(planes=(WIDE, against))
    tensor.validate()
    assert not tensor.int8().any()
    assert tensor.zero_share == 1.0
