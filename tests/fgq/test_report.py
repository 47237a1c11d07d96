"""Sizes against the bytes that a converted model holds, products against counting, totals by hand."""

import itertools
import json

import numpy as np
import pytest

from fgq.converters.float_layers import products_of_sum
from fgq.format.packing import pack_codes
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.quantization.weights import quantize_weight
from fgq.report import (
    LayerReport,
    OutputCheck,
    Report,
    SelfCheck,
    bits_per_weight,
    multiplications,
    removed_share,
)


def tensor_of(shape, scheme, group_axis=1, channel_axis=0, **options):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return quantize_weight(weight, scheme, group_axis=group_axis, channel_axis=channel_axis, **options)


def layer(name="conv", **changes):
    fields = {
        "name": name,
        "operator": "Conv",
        "shape": (8, 4, 3, 3),
        "scheme": "ternary N=4",
        "activations": "int8",
        "reason": "",
        "multiplications": 1000,
        "bits_per_weight": 4.0,
        "signal_to_noise_db": 12.5,
        "multiplications_removed": 0.75,
        "lost_groups": 0,
    }
    return LayerReport(**fields | changes)


def report(*layers, **changes):
    fields = {
        "options": {"group_size": 4},
        "layers": layers,
        "float_bytes": 4000,
        "converted_bytes": 500,
        "minimum_onnxruntime": "1.26",
    }
    return Report(**fields | changes)


@pytest.mark.parametrize("shape", [(6, 13, 3, 3), (5, 7), (1, 1), (16, 64)])
@pytest.mark.parametrize("N", [1, 4, 64])
@pytest.mark.parametrize("per_channel", [True, False])
def test_bits_are_those_of_the_arrays_in_the_file(shape, N, per_channel):
    tensor = tensor_of(shape, WeightScheme(group_size=N), per_channel=per_channel)
    (plane,) = tensor.planes
    packed = pack_codes(plane.codes, 1).nbytes + plane.alpha.nbytes + tensor.row_scale.nbytes
    weights = np.prod(shape)
    assert bits_per_weight(tensor, packed=True) == 8 * packed / weights
    plain = tensor.int8().nbytes + tensor.row_scale.nbytes
    assert bits_per_weight(tensor, packed=False) == 8 * plain / weights
    eight = tensor_of(shape, WeightScheme(codes=Codes.INT8), per_channel=per_channel)
    assert bits_per_weight(eight, packed=True) == bits_per_weight(eight, packed=False) == 8 * plain / weights


def test_a_trit_takes_1_6_bits_and_a_group_8_more():
    tensor = tensor_of((320, 640), WeightScheme(group_size=64))
    assert bits_per_weight(tensor, packed=True) == pytest.approx(1.6 + 8 / 64 + 32 / 640)


@pytest.mark.parametrize(
    ("shape", "group_axis", "channel_axis"), [((6, 13, 3, 2), 1, 0), ((13, 6), 0, 1), ((2, 13, 6), 1, 2)]
)
@pytest.mark.parametrize("N", [1, 4, 13, 64])
def test_one_product_remains_for_each_group(shape, group_axis, channel_axis, N):
    tensor = tensor_of(shape, WeightScheme(group_size=N), group_axis, channel_axis)
    kept = tensor.planes[0].alpha.size / tensor.planes[0].codes.size
    assert removed_share(tensor) == pytest.approx(1 - kept, abs=1e-15)
    assert removed_share(tensor_of(shape, WeightScheme(codes=Codes.INT8), group_axis, channel_axis)) == 0.0


def test_whole_groups_save_one_minus_one_nth():
    for N in (1, 4, 64):
        tensor = tensor_of((3, 128, 2, 2), WeightScheme(group_size=N))
        assert removed_share(tensor) == 1 - 1 / N


def counted_products(weight, output):
    """Walk through a convolution: every output takes every weight of its filter."""
    places = itertools.product(*map(range, output))
    return sum(np.prod(weight[1:]) for _ in places)


@pytest.mark.parametrize(
    ("op_type", "weight", "group_axis", "output", "counted"),
    [
        ("Conv", (6, 2, 3, 3), 1, (1, 6, 4, 5), counted_products((6, 2, 3, 3), (6, 4, 5))),
        ("Conv", (6, 1, 3, 3), 1, (7, 6, 4, 5), 6 * 20 * 9),  # of one sample in a batch of 7
        ("MatMul", (64, 10), 0, (1, 10), 640),
        ("Gemm", (10, 64), 1, (1, 10), 640),
        ("MatMul", (64, 10), 0, (1, 7, 10), 7 * 640),
        ("MatMul", (3, 64, 10), 1, (1, 3, 7, 10), 3 * 7 * 640),  # a matrix for each of three
        ("MatMul", (64, 10), 0, (None, None, 10), 640),  # an open length counts once
        ("MatMul", (64, 10), 0, None, None),
    ],
)
def test_multiplications_are_outputs_times_products(op_type, weight, group_axis, output, counted):
    assert multiplications(products_of_sum(op_type, weight, group_axis), output) == counted


def test_layers_know_their_weights_and_whether_they_are_converted():
    assert layer().weights == 288
    assert layer().is_converted
    plain = layer(shape=(), scheme="float", reason="its weights are computed at run time")
    assert (plain.weights, plain.is_converted) == (0, False)


def test_totals_weigh_layers_by_their_size():
    whole = report(
        layer(shape=(10, 10), bits_per_weight=2.0, multiplications=900, multiplications_removed=1.0),
        layer("fc", shape=(300,), bits_per_weight=8.0, multiplications=100, multiplications_removed=0.0),
    )
    assert whole.weights == 400
    assert whole.bits_per_weight == (2 * 100 + 8 * 300) / 400
    assert whole.multiplications_removed == 0.9


def test_totals_of_nothing_and_of_the_unknown():
    assert (report().weights, report().bits_per_weight, report().multiplications_removed) == (0, 0.0, 0.0)
    assert report(layer(), layer("b", multiplications=None)).multiplications_removed is None


def test_a_report_is_json():
    check = SelfCheck(
        samples=2,
        data="calibration data",
        repeatable=True,
        outputs=(
            OutputCheck(
                name="y", engines_difference=0.0, engines_equal=True, signal_to_noise_db=float("-inf")
            ),
        ),
    )
    layers = (
        layer(signal_to_noise_db=float("inf")),
        layer("head", scheme="float", signal_to_noise_db=None, multiplications=None),
        layer("nan", signal_to_noise_db=float("nan")),
    )
    found = json.loads(json.dumps(report(*layers, self_check=check).to_dict(), allow_nan=False))
    assert [entry["signal_to_noise_db"] for entry in found["layers"]] == [None, None, None]
    assert found["layers"][0]["shape"] == [8, 4, 3, 3]
    assert found["self_check"]["outputs"][0]["signal_to_noise_db"] is None
    assert found["self_check"]["repeatable"] is True
    assert found["totals"] == {
        "weights": 3 * 288,
        "layers": 3,
        "converted_layers": 2,
        "bits_per_weight": 4.0,
        "multiplications_removed": None,
        "activation_bits": None,
    }
    assert report(layer()).to_dict()["self_check"] is None
