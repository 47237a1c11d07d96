"""Training from scratch with batch normalization beside quantized layers."""

from dataclasses import replace

import networks
import numpy as np
import pytest
import torch
from torch import nn

from fgq.errors import ModelError
from fgq.graph.ort import open_session
from fgq.quantization.scheme import ActivationScheme, Codes, Granularity, WeightScheme
from fgq.train import export, quantized_layers
from fgq.train.fit import dequantized
from fgq.train.scratch import INT4_PER_FILTER, GroupSteps, RowSteps, fold, prepare_from_scratch
from fgq.train.trainer import Schedule, train

SCHEMES = {
    "ternary4": WeightScheme(group_size=4),
    "ternary5": WeightScheme(group_size=5),  # ragged
    "tied": WeightScheme(codes=Codes.TIED, group_size=8),
    "int8": WeightScheme(codes=Codes.INT8),
    "int4": INT4_PER_FILTER,
}
AXES = {"group_axis": 1, "channel_axis": 0}
SHORT = Schedule(steps=20, batch=32, rate=5e-3, warm_up=2, ema=0.0, checkpoint_every=5)


def untrained(scheme, **options):
    torch.manual_seed(0)
    module = networks.Residual()
    return prepare_from_scratch(module, scheme, (torch.zeros(2, 3, 12, 12),), warm_up=5, **options)


def trained(scheme, folder, schedule=SHORT, **options):
    module = untrained(scheme, **options)
    train(module, networks.data(), schedule, folder)
    return module


@pytest.fixture
def weight():
    return torch.randn(12, 18, 3, 3, generator=torch.Generator().manual_seed(3))


GROUPS = [name for name, scheme in SCHEMES.items() if scheme.granularity is Granularity.GROUP]


def first_steps(weight, name):
    return GroupSteps(weight, SCHEMES[name], **AXES)


@pytest.mark.parametrize("name", GROUPS)
def test_first_steps_give_the_fitted_values(weight, name):
    weight[3] = 0.0
    wanted = dequantized(weight, SCHEMES[name], **AXES)
    found = first_steps(weight, name)(weight)
    # A step is a quotient times its divisor again, each rounded to float32.
    torch.testing.assert_close(found.detach(), wanted, rtol=5e-7, atol=0)
    assert not found[3].any()


@pytest.mark.parametrize(("name", "limit"), [("int8", 127), ("int4", 7)])
def test_rows_are_scaled_by_their_largest_magnitude(weight, name, limit):
    weight[3] = 0.0
    scheme = WeightScheme(codes=Codes.INT8, weight_limit=limit)
    found = RowSteps(SCHEMES[name].max_code, 0)(weight)
    torch.testing.assert_close(found, dequantized(weight, scheme, **AXES), rtol=3e-7, atol=0)


def test_rows_of_another_axis(weight):
    found = RowSteps(7, 1)(weight)
    torch.testing.assert_close(found, RowSteps(7, 0)(weight.transpose(0, 1)).transpose(0, 1), rtol=0, atol=0)


@pytest.mark.parametrize("name", GROUPS)
def test_steps_grow_with_their_row(weight, name):
    weight[3] = 0.0
    kept, grown = first_steps(weight, name), weight.clone()
    grown[:6] *= 4.0
    wanted = kept(weight).detach()
    wanted[:6] *= 4.0  # exact
    torch.testing.assert_close(kept(grown).detach(), wanted, rtol=0, atol=0)


def test_one_growing_weight_leaves_the_codes_of_its_group(weight):
    kept = first_steps(weight, "ternary4")
    before = kept(weight).sign()
    weight[0, 0, 0, 0] *= 3.0
    assert torch.equal(kept(weight).sign()[0, 1:4], before[0, 1:4])


def test_a_row_of_zeros_gets_codes_once_it_has_weights(weight):
    full, weight = weight, weight.clone()
    weight[3] = 0.0
    kept = first_steps(weight, "ternary4")
    assert not kept(weight)[3].any()
    assert 0.3 < kept(full)[3].ne(0).float().mean() < 0.9


@pytest.mark.parametrize("name", SCHEMES)
def test_gradients_pass_straight_through(weight, name):
    kept = first_steps(weight, name) if name in GROUPS else RowSteps(7, 0)
    weight.requires_grad_()
    factor = torch.arange(weight.numel()).reshape(weight.shape).float()
    (kept(weight) * factor).sum().backward()
    assert torch.equal(weight.grad, factor)


def test_the_gradient_of_a_step_is_that_of_its_codes():
    # Of weights beyond the last level the result is codes * step, of which this is the slope.
    codes = torch.randint(-1, 2, (6, 8), generator=torch.Generator().manual_seed(0)).float()
    codes[:, ::4] = 1.0
    kept = first_steps(codes, "ternary4")
    nn.init.constant_(kept.growth, -1.0)
    factor = torch.randn(codes.shape, generator=torch.Generator().manual_seed(1))
    (kept(codes) * factor).sum().backward()
    with torch.no_grad():
        wanted = (codes * factor).reshape(6, 2, 4).sum(-1) * kept.steps(codes) * 4**-0.5  # LSQ, section 2.2
    torch.testing.assert_close(kept.growth.grad, wanted, rtol=1e-5, atol=1e-6)


def test_steps_are_learned(tmp_path):
    module = trained(SCHEMES["ternary4"], tmp_path)
    grown = [layer.kept_steps.growth for layer in quantized_layers(module).values() if layer.group_axis == 1
             and isinstance(layer.kept_steps, GroupSteps)]  # fmt: skip
    assert len(grown) == 4
    assert all(values.abs().max() > 1e-3 for values in grown)


def test_normalization_stays_and_the_module_is_left_as_it_was():
    torch.manual_seed(0)
    module = networks.Residual()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    prepared = untrained(WeightScheme(group_size=4))
    assert isinstance(prepared.norm, nn.BatchNorm2d)
    assert prepared.stem.bias is None
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(prepared.left.weight, module.left.weight)


def test_the_first_and_the_last_layer_have_eight_bits():
    layers = quantized_layers(untrained(INT4_PER_FILTER, activations=ActivationScheme(bits=4)))
    eight = {name for name, layer in layers.items() if layer.weight_scheme.codes is Codes.INT8}
    assert eight == {"stem", "head", "deep"}  # and the depthwise one
    assert {name for name, layer in layers.items() if layer.input_quantizer.bits == 8} == eight


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("ternary5", "int4") else pytest.param(name, marks=pytest.mark.slow)
        for name in SCHEMES
    ],
)
def test_the_file_computes_what_was_trained(tmp_path, name):
    module = trained(SCHEMES[name], tmp_path)
    with torch.no_grad():
        module.norm.weight[::3] *= -1.0  # negative gains negate codes
        module.norm.running_mean.uniform_(-0.1, 0.1)
    folded = fold(module)
    for owner, layer in quantized_layers(folded).items():
        if owner != "stem":
            wanted = module.get_submodule(owner).kept_steps(module.get_submodule(owner).weight).detach()
            # Half a row scale at the largest code: scales of groups are rounded to multiples of their row's.
            limit = layer.weight_scheme.alpha_limit
            rounding = 0.51 * wanted.abs().max().item() / limit if limit > 1 else 0.0
            found = layer.tensor().dequantize()
            np.testing.assert_allclose(found, wanted, rtol=0 if rounding else 1e-6, atol=rounding)
    images = networks.data().validation.images
    with torch.no_grad():
        unfolded, whole = module.eval()(images), folded(images)
    # The order of roundings differs, by which an activation falls one integer aside here and there.
    assert (unfolded - whole).abs().max() < 0.1 * whole.std()
    path = tmp_path / "model.onnx"
    assert export(folded, path, (images[:2],)) == []
    session = open_session(path, "model")
    (found,) = session.run(None, {"input": images.numpy()})
    np.testing.assert_array_equal(found, whole.numpy())


@pytest.mark.parametrize("name", SCHEMES)
def test_folding_keeps_codes_and_rounds_scales_to_multiples_of_the_rows(tmp_path, name):
    module = trained(SCHEMES[name], tmp_path, replace(SHORT, steps=60)).eval()
    for owner, layer in quantized_layers(fold(module)).items():
        kept = module.get_submodule(owner).kept_steps
        weight = module.get_submodule(owner).weight.detach()
        tensor = layer.tensor()
        found, wanted = torch.from_numpy(tensor.dequantize()), kept(weight)
        gain = torch.from_numpy(layer.weight.detach().numpy()) / wanted  # of the folded normalization
        row_scale = torch.from_numpy(tensor.row_scale).reshape(-1, *[1] * (weight.ndim - 1))
        wanted = torch.where(wanted == 0, 0.0, wanted * gain)
        # Half a row scale for each level, and what float32 rounds.
        assert ((found - wanted).abs() <= 0.51 * row_scale * layer.weight_scheme.max_code).all()
        assert torch.equal(found == 0, wanted == 0)


def test_the_loss_falls_and_ranges_freeze(tmp_path):
    longer = replace(SHORT, steps=60)
    module = trained(WeightScheme(group_size=4), tmp_path, longer, activations=ActivationScheme(bits=4))
    losses = [float(line.split(",")[1]) for line in (tmp_path / "metrics.csv").read_text().split()[1:]]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    quantizers = list(module.activation_quantizers.values())
    scales = [quantizer.scale.clone() for quantizer in quantizers]
    module.train()(100 * networks.data().train.images[:8])
    assert all(torch.equal(q.scale, scale) for q, scale in zip(quantizers, scales, strict=True))


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    whole = trained(WeightScheme(group_size=4), tmp_path / "a")
    module = untrained(WeightScheme(group_size=4))

    def kill(stage, done, total):
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(module, networks.data(), SHORT, tmp_path / "b", progress=kill)
    resumed = untrained(WeightScheme(group_size=4))
    train(resumed, networks.data(), SHORT, tmp_path / "b", resume=True)
    wanted = whole.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.state_dict().items())


def test_a_module_without_layers_is_refused():
    with pytest.raises(ModelError, match="found no layer to quantize"):
        prepare_from_scratch(nn.ReLU(), WeightScheme(), (torch.zeros(2, 3),))
