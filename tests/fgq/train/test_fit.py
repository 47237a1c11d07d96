import numpy as np
import pytest
import torch

from fgq.errors import ConfigError
from fgq.quantization.scheme import Codes, Granularity, WeightScheme
from fgq.quantization.weights import quantize_weight
from fgq.train.fit import dequantized

TRAINED = [codes for codes in Codes if codes is not Codes.DUAL]


@pytest.mark.parametrize("codes", TRAINED)
@pytest.mark.parametrize("group_size", [4, 7, 64])
@pytest.mark.parametrize("shape", [(24, 70, 3, 3), (17, 130), (1, 1), (5, 3)])
@pytest.mark.parametrize("axes", [(1, 0), (0, 1)])
def test_the_weights_are_those_of_the_converter(codes, group_size, shape, axes):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[-1] = 0
    scheme = WeightScheme(codes=codes, group_size=group_size)
    wanted = quantize_weight(weight, scheme, group_axis=axes[0], channel_axis=axes[1]).dequantize()
    found = dequantized(torch.from_numpy(weight), scheme, group_axis=axes[0], channel_axis=axes[1])
    np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize("codes", TRAINED)
def test_equal_magnitudes_and_values_on_the_grid_tie_as_in_the_converter(codes):
    weight = np.random.default_rng(1).integers(-3, 4, (40, 64)).astype(np.float32) / 4
    scheme = WeightScheme(codes=codes, group_size=16)
    wanted = quantize_weight(weight, scheme, group_axis=1, channel_axis=0).dequantize()
    found = dequantized(torch.from_numpy(weight), scheme, group_axis=1, channel_axis=0)
    np.testing.assert_array_equal(found.numpy(), wanted)


@pytest.mark.parametrize(
    "scheme",
    [
        WeightScheme(codes=Codes.DUAL, group_size=None),
        WeightScheme(codes=Codes.INT4, granularity=Granularity.LAYER),
        WeightScheme(codes=Codes.INT8, granularity=Granularity.LAYER),
    ],
    ids=str,
)
def test_schemes_that_are_not_trained(scheme):
    with pytest.raises(ConfigError, match=f"scheme: found {scheme}, wanted groups"):
        dequantized(torch.ones(4, 4), scheme, group_axis=1, channel_axis=0)
