"""Layouts against loops over groups, biases against exact fractions, losses against brute force."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fgq.errors import WeightError
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.quantization.ternary import fit_rows
from fgq.quantization.weights import (
    BIAS_LIMIT,
    least_row_scale,
    lost_groups,
    quantize_bias,
    quantize_weight,
    signal_to_noise_db,
)

FEW = settings(deadline=None, max_examples=40)

LAYOUTS = {
    "matmul": ((13, 5), 0, 1),
    "matmul, weight on the left": ((5, 13), 1, 0),
    "gemm, transB": ((5, 13), 1, 0),
    "matmul, batched": ((3, 13, 5), 1, 2),
    "matmul, batched twice": ((2, 3, 13, 5), 2, 3),
    "matmul, batched, weight on the left": ((3, 5, 13), 2, 1),
    "conv": ((6, 13, 3, 2), 1, 0),
    "conv in groups": ((6, 2, 3, 3), 1, 0),
    "depthwise": ((6, 1, 3, 3), 1, 0),
    "transposed conv": ((13, 6, 2, 2), 0, 1),
    "one weight": ((1, 1), 0, 1),
    "one row": ((1, 9), 1, 0),
    "one input": ((1, 9), 0, 1),
}


def weights(shape, seed=0, zeros=0.1):
    rng = np.random.default_rng(seed)
    values = rng.laplace(size=shape).astype(np.float32)
    values[rng.random(shape) < zeros] = 0
    return values


def by_loops(weight, N, group_axis, channel_axis, limit):
    """Gather the groups of each output channel one by one, fit the row, and put its weights back."""
    w8 = np.zeros(weight.shape, np.int8)
    scales = []
    length = weight.shape[group_axis]
    others = [axis for axis in range(weight.ndim) if axis not in (group_axis, channel_axis)]
    for m in range(weight.shape[channel_axis]):
        places = []
        for rest in itertools.product(*(range(weight.shape[axis]) for axis in others)):
            for start in range(0, length, N):
                place = [0] * weight.ndim
                place[channel_axis] = m
                for axis, index in zip(others, rest, strict=True):
                    place[axis] = index
                place[group_axis] = slice(start, start + N)
                places.append(tuple(place))
        groups = np.zeros((1, len(places), N))
        for index, place in enumerate(places):
            groups[0, index, : weight[place].size] = weight[place]
        codes, alpha, row_scale = fit_rows(groups, limit)
        scales.append(row_scale[0])
        for index, place in enumerate(places):
            w8[place] = codes[0, index, : weight[place].size] * alpha[0, index].astype(np.int8)
    return w8, np.array(scales)


@pytest.mark.parametrize("N", [1, 4, 5, 13, 64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_run_along_the_reduction_in_every_layout(layout, N):
    shape, group_axis, channel_axis = LAYOUTS[layout]
    weight = weights(shape, zeros=0)
    tensor = quantize_weight(
        weight,
        WeightScheme(group_size=N, weight_limit=100),
        group_axis=group_axis,
        channel_axis=channel_axis,
    )
    tensor.validate()
    w8, row_scale = by_loops(weight, N, group_axis, channel_axis, 100)
    assert np.array_equal(tensor.int8(), w8)
    assert np.array_equal(tensor.row_scale, row_scale)
    assert tensor.groups == -(-shape[group_axis] // N)
    assert tensor.group.tolist() == [place // N for place in range(shape[group_axis])]
    (plane,) = tensor.planes
    assert plane.codes.flags.c_contiguous
    assert plane.alpha.flags.c_contiguous


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("limit", [127, 63])
def test_int8_rows_reach_the_limit_and_round_to_the_nearest(layout, limit):
    shape, group_axis, channel_axis = LAYOUTS[layout]
    weight = weights(shape, zeros=0)
    tensor = quantize_weight(
        weight,
        WeightScheme(codes=Codes.INT8, weight_limit=limit),
        group_axis=group_axis,
        channel_axis=channel_axis,
    )
    rows = tuple(axis for axis in range(weight.ndim) if axis != channel_axis)
    assert (np.abs(tensor.int8()).max(rows) == limit).all()
    step = np.expand_dims(tensor.row_scale.astype(np.float64), rows)
    # Half a step, and the rounding of the row scale to float32 at the largest of 127 steps.
    assert (np.abs(weight - step * tensor.int8()) <= step * (0.5 + 127 * 2.0**-24)).all()


def test_one_scale_for_all_channels_is_a_scalar():
    weight = weights((3, 13, 5))
    weight[..., 0] = 0
    whole = quantize_weight(
        weight, WeightScheme(group_size=4), group_axis=1, channel_axis=2, per_channel=False
    )
    assert whole.row_scale.shape == ()
    rows = np.moveaxis(weight, 2, 0).reshape(1, -1, 13)
    w8, row_scale = by_loops(rows.reshape(1, 15, 13), 4, 2, 0, 127)
    assert np.array_equal(np.moveaxis(whole.int8(), 2, 0).reshape(w8.shape), w8)
    assert whole.row_scale == row_scale[0]
    plain = quantize_weight(
        weight, WeightScheme(codes=Codes.INT8), group_axis=1, channel_axis=2, per_channel=False
    )
    assert plain.row_scale == np.float32(np.abs(weight).max() / 127)
    assert np.abs(plain.int8()).max() == 127


def test_the_largest_group_size_is_one_group():
    weight = weights((3, 7))
    large = quantize_weight(weight, WeightScheme(group_size=2**31 - 1), group_axis=1, channel_axis=0)
    whole = quantize_weight(weight, WeightScheme(group_size=7), group_axis=1, channel_axis=0)
    assert np.array_equal(large.int8(), whole.int8())


def test_chunks_of_rows_give_what_the_whole_gives(monkeypatch):
    weight = weights((7, 10, 3, 3))
    least = np.linspace(0, 0.1, 7)
    options = {"group_axis": 1, "channel_axis": 0, "least_row_scale": least}
    whole = quantize_weight(weight, WeightScheme(group_size=4), **options)
    for chunk in (1, 200):
        monkeypatch.setattr("fgq.quantization.weights._CHUNK", chunk)
        parts = quantize_weight(weight, WeightScheme(group_size=4), **options)
        assert np.array_equal(parts.int8(), whole.int8())
        assert np.array_equal(parts.row_scale, whole.row_scale)


@pytest.mark.parametrize("scheme", [WeightScheme(group_size=4), WeightScheme(codes=Codes.INT8)])
def test_rows_of_zeros_take_the_median_of_the_others(scheme):
    weight = weights((6, 9), zeros=0)
    weight[[1, 4]] = 0
    tensor = quantize_weight(weight, scheme, group_axis=1, channel_axis=0)
    others = tensor.row_scale[[0, 2, 3, 5]]
    assert (tensor.row_scale[[1, 4]] == np.median(others)).all()
    assert not tensor.int8()[[1, 4]].any()


@pytest.mark.parametrize("scheme", [WeightScheme(group_size=4), WeightScheme(codes=Codes.INT8)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_of_zeros_have_scale_one(scheme, per_channel):
    tensor = quantize_weight(
        np.zeros((2, 6, 3, 3), np.float32), scheme, group_axis=1, channel_axis=0, per_channel=per_channel
    )
    assert (tensor.row_scale == 1).all()
    assert tensor.zero_share == 1.0
    assert lost_groups(np.zeros(tensor.shape), tensor) == 0


@pytest.mark.parametrize("scheme", [WeightScheme(group_size=4), WeightScheme(codes=Codes.INT8)])
@pytest.mark.parametrize("values", [[np.nan], [np.inf, -np.inf], [np.nan, np.inf, -np.inf]])
def test_weights_that_are_not_finite_are_counted_and_refused(scheme, values):
    weight = weights((4, 5))
    weight.flat[: len(values)] = values
    with pytest.raises(WeightError, match=f"weights: found {len(values)} of 20 values NaN or infinite"):
        quantize_weight(weight, scheme, group_axis=1, channel_axis=0)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 3, 0, 3)])
def test_empty_weights_are_refused(shape):
    with pytest.raises(WeightError, match="found an empty tensor"):
        quantize_weight(np.zeros(shape), WeightScheme(), group_axis=1, channel_axis=0)


@FEW
@given(seed=st.integers(0, 2**32 - 1), ternary=st.booleans())
def test_negated_weights_have_exactly_negated_integers(seed, ternary):
    scheme = WeightScheme(group_size=3) if ternary else WeightScheme(codes=Codes.INT8)
    weight = weights((4, 8), seed)
    tensor = quantize_weight(weight, scheme, group_axis=1, channel_axis=0)
    negated = quantize_weight(-weight, scheme, group_axis=1, channel_axis=0)
    assert np.array_equal(negated.int8(), -tensor.int8())
    assert np.array_equal(negated.row_scale, tensor.row_scale)
    assert tensor.int8().min() > -128


def test_the_same_weights_give_the_same_bytes():
    found = [
        quantize_weight(weights((8, 30)), WeightScheme(group_size=4), group_axis=1, channel_axis=0)
        for _ in range(2)
    ]
    assert found[0].planes[0].codes.tobytes() == found[1].planes[0].codes.tobytes()
    assert found[0].planes[0].alpha.tobytes() == found[1].planes[0].alpha.tobytes()
    assert found[0].row_scale.tobytes() == found[1].row_scale.tobytes()


def test_memory_order_does_not_matter():
    weight = weights((13, 6))
    scheme = WeightScheme(group_size=4)
    plain = quantize_weight(weight, scheme, group_axis=0, channel_axis=1)
    strided = quantize_weight(np.asfortranarray(weight), scheme, group_axis=0, channel_axis=1)
    assert np.array_equal(plain.int8(), strided.int8())


@FEW
@given(
    bias=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=6).map(
        lambda values: np.array(values, np.float32)
    ),
    activation=st.floats(2.0**-10, 1, width=32),
    seed=st.integers(0, 99),
)
def test_biases_are_rounded_fractions(bias, activation, seed):
    row_scale = np.random.default_rng(seed).uniform(1e-3, 1, bias.size).astype(np.float32)
    found = quantize_bias(bias, activation, row_scale)
    assert found.dtype == np.int32
    steps = np.float32(activation) * row_scale
    for value, step, integer in zip(bias, steps, found, strict=True):
        exact = Fraction(float(value)) / Fraction(float(step))
        # The quotient in float64 may round to a half that the exact one only comes near.
        assert abs(exact - int(integer)) <= Fraction(1, 2) + Fraction(1, 2**30)


def test_halves_round_to_even():
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.75, 0.0], np.float32)
    found = quantize_bias(halves * 0.25, 0.5, np.array(0.5, np.float32))
    assert found.tolist() == [0, 2, 2, 0, -2, -2, 1, 0]
    assert found.tolist() == [round(Fraction(float(value))) for value in halves]  # exact, half to even


@pytest.mark.parametrize("bias", [[2.0**30 + 128], [-(2.0**31)], [np.inf], [np.nan]])
def test_biases_beyond_the_accumulator_are_refused(bias):
    with pytest.raises(
        WeightError, match=r"bias: found .* in units of the accumulator, wanted at most 2\*\*30"
    ):
        quantize_bias(np.array(bias, np.float32), 1.0, np.ones(1, np.float32))
    assert quantize_bias(np.array([-(2.0**30)], np.float32), 1.0, np.ones(1, np.float32)) == -(2**30)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_biases_that_are_not_finite_are_refused_before_they_spoil_the_scales(value):
    with pytest.raises(WeightError, match="bias: found 1 of 3 values NaN or infinite"):
        least_row_scale(np.array([1, value, 2], np.float32), 0.1)


MAGNITUDES = st.sampled_from([0.0, 1e-45, 1e-38, 1e-20, 1e-3, 1.0, 1e4, 1e20])


@FEW
@given(
    bias=MAGNITUDES,
    weight=MAGNITUDES,
    activation=st.sampled_from([1.2e-38, 1e-20, 1e-8, 0.02, 1 / 255, 1.0, 300.0]),
    ternary=st.booleans(),
    per_channel=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_bounded_row_scales_keep_every_bias_in_range(bias, weight, activation, ternary, per_channel, seed):
    """Rows of zeros with a bias, rows of dead weights, and biases that dwarf their weights included."""
    rng = np.random.default_rng(seed)
    biases = (bias * rng.standard_normal(5)).astype(np.float32)
    values = (weight * rng.standard_normal((5, 6))).astype(np.float32)
    values[rng.random(5) < 0.3] = 0
    activation = float(np.float32(activation))
    least = least_row_scale(biases, activation)
    assume(least.max() < 1e38)  # else no float32 row scale is large enough
    tensor = quantize_weight(
        values,
        WeightScheme(group_size=4) if ternary else WeightScheme(codes=Codes.INT8),
        group_axis=1,
        channel_axis=0,
        least_row_scale=least,
        per_channel=per_channel,
    )
    assert (tensor.row_scale >= least).all()
    assert (np.float32(activation) * tensor.row_scale >= np.finfo(np.float32).tiny).all()
    assert (np.abs(quantize_bias(biases, activation, tensor.row_scale).astype(np.int64)) <= BIAS_LIMIT).all()


@FEW
@given(seed=st.integers(0, 2**32 - 1), activation=st.floats(2.0**-20, 2.0**10, width=32))
def test_biases_at_the_bound_itself_are_in_range(seed, activation):
    biases = np.exp(np.random.default_rng(seed).uniform(-20, 20, 200)).astype(np.float32)
    least = least_row_scale(biases, activation)
    stored = quantize_weight(
        np.full((200, 1), 1e-30),
        WeightScheme(codes=Codes.INT8),
        group_axis=1,
        channel_axis=0,
        least_row_scale=least,
    ).row_scale
    found = quantize_bias(biases, activation, stored)
    # The bound is tight but for two roundings to float32.
    assert found.max() <= BIAS_LIMIT
    assert found.min() >= BIAS_LIMIT * (1 - 2.0**-22)


@pytest.mark.parametrize("products", [1, 33_000, 40_000, 66_000])
def test_bias_and_the_longest_sum_stay_inside_an_int32_together(products):
    biases = np.array([1.0, -3.0], np.float32)
    scale = least_row_scale(biases, 0.5, products).astype(np.float32)
    bias = quantize_bias(biases, 0.5, np.nextafter(scale, np.float32(np.inf)))
    assert np.abs(bias.astype(np.int64)).max() + 255 * 127 * products < 2**31


def count_lost(weight, tensor):
    lost = 0
    others = [axis for axis in range(weight.ndim) if axis != tensor.group_axis]
    for rest in itertools.product(*(range(weight.shape[axis]) for axis in others)):
        for g in range(tensor.groups):
            place = [0] * weight.ndim
            for axis, index in zip(others, rest, strict=True):
                place[axis] = index
            place[tensor.group_axis] = np.flatnonzero(tensor.group == g)
            values = weight[tuple(place)]
            place[tensor.group_axis] = g
            lost += bool(values.any()) and not any(plane.alpha[tuple(place)] for plane in tensor.planes)
    return lost


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lost_groups_are_counted_one_by_one(layout):
    shape, group_axis, channel_axis = LAYOUTS[layout]
    rng = np.random.default_rng(2)
    weight = weights(shape, zeros=0.3) * np.exp(4 * rng.standard_normal(shape)).astype(np.float32)
    tensor = quantize_weight(
        weight, WeightScheme(group_size=2), group_axis=group_axis, channel_axis=channel_axis
    )
    assert lost_groups(weight, tensor) == count_lost(weight, tensor)
    if weight.size > 60:
        assert lost_groups(weight, tensor) > 0


def test_int8_loses_no_group():
    weight = np.array([[1.0, 1e-9]])
    tensor = quantize_weight(weight, WeightScheme(codes=Codes.INT8), group_axis=1, channel_axis=0)
    assert lost_groups(weight, tensor) == 0


def test_the_ratio_in_decibels():
    signal = np.array([3.0, -4.0])
    assert signal_to_noise_db(signal, signal * 1.1) == pytest.approx(20)
    assert signal_to_noise_db(signal, np.zeros(2)) == 0.0
    assert signal_to_noise_db(signal, signal) == np.inf
    assert signal_to_noise_db(np.zeros(2), signal) == -np.inf
    assert signal_to_noise_db(np.zeros(2), np.zeros(2)) == np.inf
    assert signal_to_noise_db(np.zeros(0), np.zeros(0)) == np.inf


def test_the_ratio_of_float16_values_is_taken_in_float64():
    signal = np.full(8, 6e4, np.float16)  # its square overflows float16
    assert signal_to_noise_db(signal, signal * np.float16(0.5)) == pytest.approx(20 * np.log10(2))
