"""The order of values and the number type that a quantizer is given are those that it returns."""

import pytest
import torch

from fgq.quantization.scheme import Quantizer
from fgq.train.quantizer import ActivationQuantizer, Ranges


def quantizer(ranges):
    made = ActivationQuantizer(8, ranges, 1)
    made.set(Quantizer(scale=0.03, zero_point=117, bits=8))
    return made.train()


def results(made, x, weight):
    x = x.clone().requires_grad_()
    y = made(x)
    (y.float() * weight).sum().backward()
    slope = made.scale.grad.clone() if made.ranges is Ranges.LEARNED else torch.zeros(())
    return y.detach(), x.grad, slope


@pytest.mark.parametrize("ranges", list(Ranges))
def test_pixels_keep_their_order(ranges):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(3, 5, 4, 6, generator=generator)
    weight = torch.randn(3, 5, 4, 6, generator=generator)
    last = {"memory_format": torch.channels_last}
    y, grad, slope = results(quantizer(ranges), x, weight)
    moved_y, moved_grad, moved_slope = results(quantizer(ranges), x.contiguous(**last), weight)
    assert y.is_contiguous()
    assert moved_y.is_contiguous(**last)
    assert moved_grad.is_contiguous(**last)
    assert torch.equal(y, moved_y)
    assert torch.equal(grad, moved_grad)
    torch.testing.assert_close(slope, moved_slope)  # the sum is taken in another order


@pytest.mark.parametrize("shape", [(7,), (1, 1, 1, 1), (2, 3, 4), (0, 3, 2, 2)])
def test_any_shape(shape):
    x = torch.ones(shape)
    y, grad, _ = results(quantizer(Ranges.STATISTICAL), x, x)
    assert y.shape == grad.shape == shape
    assert torch.equal(y, torch.full(shape, 33 * torch.tensor(0.03)))  # 1 / 0.03 rounds to 33


@pytest.mark.parametrize("ranges", list(Ranges))
def test_bfloat16_is_computed_in_float32_and_rounded_at_the_end(ranges):
    x = 3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.ones_like(x)
    y, grad, slope = results(quantizer(ranges), x.bfloat16(), weight)
    exact, exact_grad, exact_slope = results(quantizer(ranges), x.bfloat16().float(), weight)
    assert y.dtype == grad.dtype == torch.bfloat16
    assert torch.equal(y, exact.bfloat16())
    assert torch.equal(grad, exact_grad.bfloat16())
    torch.testing.assert_close(slope, exact_slope)
    evaluated = quantizer(ranges).eval()(x.bfloat16())
    assert evaluated.dtype == torch.float32
    assert torch.equal(evaluated, exact)
