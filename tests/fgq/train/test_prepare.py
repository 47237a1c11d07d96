import copy

import networks
import numpy as np
import pytest
import torch
from torch import nn

import fgq
from fgq.errors import ConfigError, DataError, ModelError
from fgq.graph.ort import open_session
from fgq.quantization.scheme import ActivationScheme, Codes, WeightScheme
from fgq.train import calibrate, export, load_converted, prepare, quantized_layers
from fgq.train.quantizer import ActivationQuantizer, Ranges

TERNARY = WeightScheme(group_size=8)


def images(count=8):
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def prepared(scheme=TERNARY, bits=8, **options):
    activations = ActivationScheme(bits=bits)
    module = prepare(networks.network(), scheme, (images(2),), activations=activations, **options)
    calibrate(module, [(images(),)])
    return module.eval()


@pytest.mark.parametrize("codes", list(Codes))
@pytest.mark.parametrize("bits", [8, 4])
def test_the_module_the_file_in_onnxruntime_and_in_fgq_give_the_same_bits(tmp_path, codes, bits):
    module = prepared(WeightScheme(codes=codes, group_size=8), bits)
    path = tmp_path / "m.onnx"
    assert export(module, path, (images(2),)) == []
    x = images(16)
    with torch.no_grad():
        mine = module(x).numpy()
    feed = {"input": x.numpy()}
    theirs = open_session(path, "model").run(None, feed)[0]
    np.testing.assert_array_equal(fgq.Session(path).run(None, feed)[0], theirs)
    np.testing.assert_array_equal(mine, theirs)


def test_every_integer_between_the_layers_is_that_of_onnxruntime(tmp_path):
    import onnx

    module, x = prepared(), images(16)
    path = tmp_path / "m.onnx"
    export(module, path, (images(2),))
    model = onnx.load(path)
    names = [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    theirs = open_session(model.SerializeToString(), "model").run(names, {"input": x.numpy()})
    seen = []

    def note(quantizer, inputs, output):
        seen.append((output / quantizer.scale).round().int() + quantizer.zero_point)

    for quantizer in module.modules():
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.register_forward_hook(note)
    with torch.no_grad():
        module(x)
    assert len(seen) == len(theirs)
    # the order of independent branches may differ in the file
    unmatched = list(theirs)
    for mine in seen:
        index = next(i for i, other in enumerate(unmatched) if np.array_equal(mine.numpy(), other))
        unmatched.pop(index)


def test_the_file_has_the_weights_and_quantizers_of_a_conversion(tmp_path):
    from fgq.eval.torch_export import export_onnx
    from fgq.format.container import is_unpack, load

    module = prepared()
    export(module, tmp_path / "mine.onnx", (images(2),))
    float_model = export_onnx(
        networks.network(), {"input": images(2)}, "output", {"input": {0: "batch"}}, "torchscript"
    )
    model, _ = fgq.convert(float_model, group_size=8, calibration={"input": images().numpy()}, recipe="fgq")
    (tmp_path / "theirs.onnx").write_bytes(model.SerializeToString())
    counts = []
    for name in ("mine.onnx", "theirs.onnx"):
        nodes = list(load(tmp_path / name).graph)
        counts.append([sum(is_unpack(n) for n in nodes)] + [
            sum(n.op_type == kind for n in nodes) for kind in ("QuantizeLinear", "DequantizeLinear", "Conv")
        ])  # fmt: skip
    assert counts[0] == counts[1]


def test_names_of_parameters_are_kept_and_the_module_is_left_as_it_was():
    module = networks.network()
    before = copy.deepcopy(module.state_dict())
    names = set(prepare(module, TERNARY, (images(2),)).state_dict())
    assert {name for name in before if not name.startswith("norm.")} <= names
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_first_last_and_depthwise_layers_take_8_bits_and_a_plan_comes_first():
    layers = quantized_layers(prepared(plan={"left": None, "mix": WeightScheme(codes=Codes.TIED)}))
    found = {name: str(layer.weight_scheme.codes) for name, layer in layers.items()}
    assert found == {
        "stem": "int8",
        "deep": "int8",
        "head": "int8",
        "right": "ternary",
        "hidden": "ternary",
        "mix": "tied",
    }


def test_the_gradient_passes_straight_through_to_the_weights():
    module = prepare(nn.Sequential(nn.Linear(16, 4)), TERNARY, (torch.zeros(2, 16),), activations=None,
                     first_last_int8=False)  # fmt: skip
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    module(x).sum().backward()
    layer = quantized_layers(module)["0"]
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, -1))


def test_a_learned_scale_has_the_gradient_of_lsq():
    quantizer = ActivationQuantizer(8, Ranges.LEARNED, 0).train()
    x = torch.tensor([0.3, 1.26, 900.0, -5.0], dtype=torch.float32)
    quantizer.scale.data.fill_(0.5)
    quantizer.steps.fill_(1)
    quantizer(x).sum().backward()
    # d/ds of s * round(x / s): round(x/s) - x/s inside, the bound outside; over sqrt(4 * 255)
    wanted = ((1 - 0.6) + (3 - 2.52) + 255 + 0) / (4 * 255) ** 0.5
    assert quantizer.scale.grad.item() == pytest.approx(wanted, rel=1e-5)


def test_statistical_ranges_move_and_then_freeze():
    quantizer = ActivationQuantizer(8, Ranges.STATISTICAL, 2).train()
    for high in (1.0, 2.0, 50.0):
        quantizer(torch.tensor([0.0, high]))
    assert float(quantizer.scale) == pytest.approx((0.95 * 1 + 0.05 * 2) / 255)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(8, 4, 3), (2, 8, 9)),
        (nn.Conv2d(8, 4, 3), (2, 8, 9, 9)),
        (nn.Conv3d(8, 4, 3), (2, 8, 5, 5, 5)),
        (nn.ConvTranspose1d(8, 4, 3), (2, 8, 9)),
        (nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2), (2, 8, 5, 5)),
        (nn.ConvTranspose3d(8, 4, 3), (2, 8, 4, 4, 4)),
        (nn.Linear(8, 4), (2, 3, 8)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_layer_computes_on_its_quantized_weight(layer, shape):
    module = prepare(nn.Sequential(layer), TERNARY, (torch.zeros(shape),), activations=None,
                     first_last_int8=False).train()  # fmt: skip
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    twin = quantized_layers(module)["0"]
    plain = copy.deepcopy(layer)
    plain.weight.data = torch.from_numpy(twin.tensor().dequantize())
    # the same operator on weights that agree to a rounding: w + (q - w) is q but for the last bit
    torch.testing.assert_close(module(x), plain(x), rtol=1e-5, atol=1e-5)


def test_an_embedding_has_groups_along_its_rows():
    module = prepare(nn.Sequential(nn.Embedding(10, 16)), TERNARY, (torch.zeros(2, dtype=torch.int64),))
    rows = module(torch.arange(10)).detach()
    assert all(len(torch.unique(row[start : start + 8].abs())) <= 2 for row in rows for start in (0, 8))


# of PyTorch itself, which looks at what autograd functions are given
@pytest.mark.filterwarnings("ignore")
def test_it_trains_under_bfloat16_autocast_and_compiled():
    module = prepared().train()
    for run in (module, torch.compile(module, backend="aot_eager")):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(images()).float().square().mean()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_the_codes_of_a_conversion_are_taken(tmp_path):
    first = prepared()
    export(first, tmp_path / "m.onnx", (images(2),))
    other = prepared()
    for layer in quantized_layers(other).values():
        torch.nn.init.normal_(layer.weight)
    assert set(load_converted(other, tmp_path / "m.onnx")) == set(quantized_layers(other))
    for name, layer in quantized_layers(other).items():
        wanted = quantized_layers(first)[name].tensor()
        np.testing.assert_array_equal(layer.tensor().int8(), wanted.int8())
    model = prepare(nn.Sequential(nn.Conv2d(3, 4, 1)), TERNARY, (images(2),))
    with pytest.raises(ModelError, match="found none of the module's layers"):
        load_converted(model, tmp_path / "m.onnx")


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_cannot_be_prepared_is_refused():
    with pytest.raises(ModelError, match=r"Branch: torch\.fx cannot trace it"):
        prepare(Branch(), TERNARY, (images(2),))
    with pytest.raises(ModelError, match="found no layer to quantize"):
        prepare(nn.Sequential(nn.ReLU()), TERNARY, (images(2),))
    with pytest.raises(ModelError, match="cannot run on the example"):
        prepare(networks.network(), TERNARY, (torch.zeros(2, 7),))
    with pytest.raises(ConfigError, match="found 'nowhere'"):
        prepare(networks.network(), TERNARY, (images(2),), plan={"nowhere": None})
    with pytest.raises(DataError, match="found no batch"):
        calibrate(prepared(), [])


def test_an_unknown_range_is_refused(tmp_path):
    module = prepare(networks.network(), TERNARY, (images(2),))
    with pytest.raises(ModelError, match="found no range"):
        export(module, tmp_path / "m.onnx", (images(2),))
