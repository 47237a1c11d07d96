"""Trained weights: what they start from, and what is left of them."""

import numpy as np
import pytest

from fgq.quantization.scheme import Codes, WeightScheme
from fgq.quantization.weights import quantize_weight
from fgq.recipes.reconstruct.weights import TrainedVector, TrainedWeight

torch = pytest.importorskip("torch")

SCHEMES = [WeightScheme(codes=codes, group_size=5) for codes in (Codes.TERNARY, Codes.TIED, Codes.INT4)]
SCHEMES.append(WeightScheme(codes=Codes.INT8))


def start(scheme, shape, axes):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[tuple([0] * len(shape))] = 30  # groups beside it become zero
    return quantize_weight(weight, scheme, group_axis=axes[0], channel_axis=axes[1]), weight


@pytest.mark.parametrize(
    "shape_axes", [((12, 7), (0, 1)), ((7, 12), (1, 0)), ((4, 12, 3, 3), (1, 0))], ids=str
)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_untrained_weights_are_what_they_started_from(scheme, shape_axes):
    tensor, weight = start(scheme, *shape_axes)
    trained = TrainedWeight(tensor, weight)
    np.testing.assert_allclose(trained().detach().numpy(), tensor.dequantize(), 1e-6)
    same = trained.harden(None)
    np.testing.assert_array_equal(same.int8(), tensor.int8())
    np.testing.assert_array_equal(same.row_scale, tensor.row_scale)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_is_trained_is_what_is_written(scheme):
    """Far moves: codes and alphas stay in their ranges, and the hard tensor is the soft one."""
    tensor, weight = start(scheme, (12, 7), (0, 1))
    trained = TrainedWeight(tensor, weight)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)
    trained.keep_in_range()
    hard = trained.harden(None)
    hard.validate()
    np.testing.assert_allclose(hard.dequantize(), trained().detach().numpy(), 1e-6)
    assert not np.array_equal(hard.int8(), tensor.int8())


def test_groups_of_zeros_have_no_scale():
    tensor, weight = start(SCHEMES[0], (10, 2), (0, 1))
    trained = TrainedWeight(tensor, weight)
    with torch.no_grad():
        trained.position[:5, 0] = 0.3
    assert trained.harden(None).planes[0].alpha[:, 0].tolist()[0] == 0


def test_row_scales_keep_their_bounds():
    tensor, weight = start(SCHEMES[0], (10, 2), (0, 1))
    least = np.array([0.0, 2.0 * tensor.row_scale[1]])
    hard = TrainedWeight(tensor, weight).harden(least)
    assert hard.row_scale[0] == tensor.row_scale[0]
    assert hard.row_scale[1] >= least[1]


def test_a_descent_finds_codes_scales_and_vectors():
    """Towards a weight of the same form with other codes, the error nearly vanishes."""
    scheme = SCHEMES[0]
    tensor, weight = start(scheme, (10, 4), (0, 1))
    goal, _ = start(scheme, (10, 4), (0, 1))
    goal = torch.tensor(goal.dequantize()[::-1].copy())
    trained, vector = TrainedWeight(tensor, weight), TrainedVector(np.ones(4, np.float32))
    adam = torch.optim.Adam([*trained.parameters(), *vector.parameters()], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 400)
    first = last = None
    for _ in range(400):
        loss = ((trained() - goal) ** 2).mean() + ((vector() - 2) ** 2).mean()
        first = loss.item() if first is None else first
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        trained.keep_in_range()
        last = loss.item()
    assert last < 0.05 * first
    np.testing.assert_allclose(vector.harden(), 2, atol=0.05)
