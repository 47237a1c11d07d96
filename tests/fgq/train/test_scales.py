import numpy as np
import pytest
import torch
from torch import nn

from fgq.errors import ConfigError
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.quantization.tensor import QuantizedTensor
from fgq.quantization.weights import BIAS_LIMIT, least_row_scale, quantize_bias, quantize_weight
from fgq.train import calibrate, fused, prepare, quantized_layers
from fgq.train.quantizer import ActivationQuantizer, Ranges
from fgq.train.scales import NEAR, LearnedScale, as_groups, from_groups, whole_scale

TRAINED = [Codes.TERNARY, Codes.TIED, Codes.INT4, Codes.INT8]


def linear(inputs, outputs):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs)


def layer(module, shape, codes=Codes.TERNARY, group_size=16, **options):
    scheme = WeightScheme(codes=codes, group_size=group_size)
    prepared = prepare(nn.Sequential(module), scheme, (torch.zeros(shape),), activations=None,
                       first_last_int8=False, scales="learned", **options)  # fmt: skip
    return quantized_layers(prepared)["0"]


@pytest.mark.parametrize("codes", TRAINED)
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda: nn.Linear(37, 6), (2, 37)),  # a ragged group
        (lambda: nn.Conv2d(20, 5, 3), (2, 20, 6, 6)),
        (lambda: nn.ConvTranspose2d(8, 4, 3), (2, 8, 5, 5)),
    ],
    ids=["linear", "conv", "transposed"],
)
def test_learned_scales_start_as_the_converter_fits_them(codes, module, shape):
    torch.manual_seed(0)
    module = module()
    learned = layer(module, shape, codes)
    wanted = quantize_weight(module.weight.detach().numpy(), learned.weight_scheme, **learned.axes)
    found = learned.tensor()
    np.testing.assert_array_equal(found.int8(), wanted.int8())
    np.testing.assert_array_equal(found.row_scale, wanted.row_scale)
    # what training computes with: the same products, multiplied in another order
    torch.testing.assert_close(
        learned.quantized_weight().detach(), torch.from_numpy(wanted.dequantize()), rtol=3e-7, atol=0
    )


def test_weights_start_near_to_their_codes_and_at_most_at_the_last_level():
    learned = layer(linear(64, 8), (2, 64), group_size=64)
    before = learned.weight.detach().clone()
    tensor = learned.tensor()
    with torch.no_grad():
        learned.weight.copy_(torch.randn(before.shape, generator=torch.Generator().manual_seed(0)))
    learned.start_from(tensor)
    ratio = learned.weight / learned.group_scale
    assert ratio.abs().max() <= 1
    assert (ratio - torch.from_numpy(tensor.planes[0].codes)).abs().max() <= NEAR + 1e-6
    np.testing.assert_array_equal(learned.tensor().int8(), tensor.int8())


def test_a_conversion_of_another_scheme_gives_its_values():
    learned = layer(linear(64, 8), (2, 64), group_size=16)
    other = quantize_weight(
        learned.weight.detach().numpy(), WeightScheme(codes=Codes.INT8), group_axis=1, channel_axis=0
    )
    learned.start_from(other)
    wanted = quantize_weight(other.dequantize(), learned.weight_scheme, group_axis=1, channel_axis=0)
    np.testing.assert_array_equal(learned.tensor().int8(), wanted.int8())


def test_groups_and_back():
    weight = torch.arange(5 * 7 * 3.0).reshape(5, 7, 3)
    scheme = WeightScheme(group_size=4)
    for axes in ({"group_axis": 1, "channel_axis": 0}, {"group_axis": 0, "channel_axis": 1}):
        groups = as_groups(weight, scheme, **axes)
        assert groups.shape[-1] == 4
        assert torch.equal(from_groups(groups, weight, **axes), weight)


def test_scales_are_whole_multiples_within_the_limit():
    scale = torch.tensor([[0.1, 0.26, 1.0], [0.0, 0.0, 0.0]])
    alpha, row_scale = whole_scale(scale, torch.tensor([0.1, 0.5]), 5)
    assert row_scale.tolist() == pytest.approx([0.2, 0.5])  # the first would need alpha 10
    assert alpha.tolist() == [[1, 1, 5], [1, 1, 1]]  # 0.1 / 0.2 to even is 0, but no group is lost


def frozen(function, *operands):
    """The straight-through surrogate: rounding is a constant offset, of which nothing is differentiated."""
    with torch.no_grad():
        offset = function(*operands).round() - function(*operands)
    return lambda *moved: function(*moved) + offset


@pytest.mark.parametrize("limit", [1, 7])
def test_the_gradients_of_learned_scales_are_those_of_the_surrogate(limit):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(3, 2, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    s = (torch.rand(3, 2, generator=generator, dtype=torch.float64) / limit + 0.3).requires_grad_()

    def codes(w, s):
        return (w / s[..., None]).clamp(-limit, limit)

    straight = frozen(codes, w, s)

    def surrogate(w, s):
        return straight(w, s) * s[..., None]

    assert torch.autograd.gradcheck(surrogate, (w, s))  # the formula itself, by finite differences
    upstream = torch.randn(w.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad(surrogate(w, s), (w, s), upstream)
    found = torch.autograd.grad(LearnedScale.apply(w, s, limit), (w, s), upstream)
    torch.testing.assert_close(found[1], wanted[1] / (8 * limit) ** 0.5)
    inside = (w / s[..., None]).abs() <= limit
    torch.testing.assert_close(found[0][inside], wanted[0][inside])
    leads_back = upstream * w > 0
    assert torch.equal(found[0][~inside], torch.where(leads_back, upstream, 0.0)[~inside])


def test_the_gradients_of_activations_are_those_of_the_surrogate():
    x = torch.linspace(-3, 9, 41, dtype=torch.float64)[1:-1].clone().requires_grad_()
    s = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    zero, highest = torch.tensor(4.0, dtype=torch.float64), 15

    def codes(x, s):
        return (x / s + zero).clamp(0, highest)

    straight = frozen(codes, x, s)
    assert torch.autograd.gradcheck(lambda x, s: (straight(x, s) - zero) * s, (x, s))
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.autograd.grad((straight(x, s) - zero) * s, (x, s), upstream)
    found = fused.activation_gradients(upstream, x.detach(), s.detach(), zero, float(highest))
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1])
    alone = fused.activation_gradient(upstream, x.detach(), s.detach(), zero, float(highest))
    assert torch.equal(alone, found[0])


def test_a_quantizer_that_was_set_is_not_moved_by_batches():
    quantizer = ActivationQuantizer(8, Ranges.STATISTICAL, 100).train()
    quantizer(torch.tensor([0.0, 1.0]))
    quantizer.set(quantizer.value())
    quantizer(torch.tensor([0.0, 50.0]))
    assert float(quantizer.scale) == pytest.approx(1 / 255)


def test_schemes_that_are_not_trained_are_refused():
    with pytest.raises(ConfigError, match="wanted groups of ternary"):
        layer(linear(8, 4), (2, 8), Codes.DUAL)


def test_a_weight_is_quantized_once_in_evaluation_until_it_changes(monkeypatch):
    learned = layer(linear(16, 4), (2, 16)).eval()
    first = learned.tensor()
    assert isinstance(first, QuantizedTensor)
    assert learned.tensor() is first
    with torch.no_grad():
        learned.group_scale.mul_(2)
    second = learned.tensor()
    assert second is not first
    assert second.row_scale[0] == pytest.approx(2 * first.row_scale[0])
    learned.weight.data = learned.weight.data * -1  # which PyTorch does not count
    np.testing.assert_array_equal(learned.train().eval().tensor().int8(), -second.int8())


def test_the_row_scale_of_learned_scales_leaves_room_for_the_bias():
    module = prepare(nn.Sequential(linear(16, 4)), WeightScheme(group_size=16), (torch.zeros(2, 16),),
                     first_last_int8=False, scales="learned").eval()  # fmt: skip
    calibrate(module, [(torch.rand(8, 16),)])
    learned = quantized_layers(module)["0"]
    with torch.no_grad():
        learned.bias[1] = 3e6
    scale = learned.input_quantizer.value().scale
    bound = least_row_scale(learned.bias.detach().numpy(), scale, 16)
    tensor = learned.tensor()
    assert tensor.row_scale[1] >= bound[1] > learned.row_scale[1]
    whole = quantize_bias(learned.bias.detach().numpy(), scale, tensor.row_scale)
    assert abs(int(whole[1])) <= BIAS_LIMIT
