import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from fgq.errors import ConfigError, OutputError
from fgq.eval import topologies
from fgq.eval.light_models import LIGHT_MODELS, light_model
from fgq.eval.topologies import SMALL, TOPOLOGIES, Network
from fgq.eval.torch_export import Exporter, require, save_onnx

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxscript")

LARGE = ("light_bvlc_alexnet", "light_vgg19", "light_zfnet512")
Export = Callable[[str, Exporter], onnx.ModelProto]


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return {name: build(**SMALL[name]) for name, build in TOPOLOGIES.items()}


@pytest.fixture(scope="module")
def export(networks: dict[str, Network]) -> Export:
    return cache(lambda name, exporter: networks[name].export(exporter))


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)[0]


def run_torch(network: Network, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return network.module(*(torch.from_numpy(values) for values in feeds.values())).numpy()


def feeds_of_another_shape(name: str, batch: int) -> dict[str, np.ndarray]:
    """Inputs unlike those that the network was traced with, in batch and, for text, in length."""
    rng = np.random.default_rng(batch)
    if name != "bert":
        size = SMALL[name]["image_size"]
        return {"pixel_values": rng.standard_normal((batch, 3, size, size), np.float32)}
    tokens = rng.integers(0, SMALL[name]["vocabulary"], (batch, 11))
    lengths = rng.integers(1, 12, (batch, 1))
    return {
        "input_ids": tokens,
        "attention_mask": (np.arange(11) < lengths).astype(np.int64),
        "token_type_ids": (np.arange(11) >= lengths // 2).astype(np.int64),
    }


EXPORTS = [
    pytest.param(name, exporter, marks=pytest.mark.slow)
    if exporter == "dynamo" and name != "resnet50"
    else (name, exporter)
    for name in TOPOLOGIES
    for exporter in ("dynamo", "torchscript")
]


@pytest.mark.parametrize(("name", "exporter"), EXPORTS)
def test_exports_equal_pytorch(
    networks: dict[str, Network], export: Export, name: str, exporter: Exporter
) -> None:
    network = networks[name]
    model = export(name, exporter)
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == list(network.inputs)
    assert [o.name for o in model.graph.output] == ["logits"]
    for batch in (1, 3):
        feeds = feeds_of_another_shape(name, batch)
        expected = run_torch(network, feeds)
        assert expected.shape == (batch, SMALL[name]["classes"])
        # float32 sums in another order, and batch normalization folded into weights or not: 1e-6 of the
        # largest value a layer, over at most 53 layers.
        np.testing.assert_allclose(run(model, feeds), expected, rtol=0, atol=5e-5 * abs(expected).max())


def test_torchscript_keeps_batch_normalization_and_dynamo_folds_it(export: Export) -> None:
    def batch_norms(exporter: Exporter) -> int:
        nodes = export("resnet50", exporter).graph.node
        return sum(node.op_type == "BatchNormalization" for node in nodes)

    assert batch_norms("dynamo") == 0
    # A stem, five blocks of three and four shortcuts.
    assert batch_norms("torchscript") == 20


def test_exports_name_no_source_file(export: Export) -> None:
    for exporter in ("dynamo", "torchscript"):
        assert b".py" not in export("resnet50", exporter).SerializeToString()


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # torchvision's model table, for ResNet-50, MobileNetV2 and ConvNeXt-T.
        ("resnet50", 25_557_032),
        ("mobilenetv2", 3_504_872),
        ("convnext", 28_589_128),
        # DeiT's table gives 5 M for ViT-Ti/16; exactly: embedding 185,664, twelve blocks of 444,864, norm
        # and classifier 193,384.
        ("vit", 5_717_416),
        # google/bert_uncased_L-2_H-128_A-2 with pooler: 4,385,920; and a classifier of 128 x 2 + 2.
        ("bert", 4_386_178),
    ],
)
def test_full_size_has_the_published_parameter_count(name: str, published: int) -> None:
    # The convolutional networks take any image; a small one makes the statistics quick to measure.
    options = {"image_size": 32} if name in ("resnet50", "mobilenetv2", "convnext") else {}
    network = TOPOLOGIES[name](**options)
    assert sum(p.numel() for p in network.module.parameters()) == published


def test_weights_are_like_trained_ones(networks: dict[str, Network]) -> None:
    for network in networks.values():
        for layer in network.module.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                fan_in = layer.weight[0].numel()
                variance = float(layer.weight.detach().var()) * fan_in
                # 2, within five standard errors of a sample variance of so many normal numbers.
                assert abs(variance - 2) < 5 * 2 * np.sqrt(2 / layer.weight.numel())
    gammas = [
        layer.weight.detach()
        for layer in networks["resnet50"].module.modules()
        if isinstance(layer, torch.nn.BatchNorm2d)
    ]
    negative = float((torch.cat(gammas) < 0).to(torch.float32).mean())
    assert 0 < negative < 0.15
    means = torch.cat(
        [m.running_mean for m in networks["resnet50"].module.modules() if hasattr(m, "running_mean")]
    )
    assert float(means.std()) > 0.05


def test_logits_neither_vanish_nor_saturate(networks: dict[str, Network]) -> None:
    for name, network in networks.items():
        logits = run_torch(network, feeds_of_another_shape(name, 8))
        assert 0.05 < logits.std() < 10, name
        assert abs(logits[0] - logits[1]).max() > 1e-3, name


def test_the_seed_alone_decides_the_weights() -> None:
    def weights(seed: int) -> np.ndarray:
        module = TOPOLOGIES["vit"](**SMALL["vit"], seed=seed).module
        return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(5)
    np.testing.assert_array_equal(torch.get_rng_state().numpy(), before.numpy())
    torch.manual_seed(2)
    np.testing.assert_array_equal(weights(5), first)
    assert (weights(6) != first).any()


@pytest.mark.parametrize("name", [n for n in LIGHT_MODELS if n not in LARGE])
def test_light_models_run(name: str) -> None:
    check_light_model(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_light_models_run(name: str) -> None:
    check_light_model(name)


def check_light_model(name: str) -> None:
    model = light_model(name)
    onnx.checker.check_model(model)
    assert "ConstantOfShape" not in {node.op_type for node in model.graph.node}
    # IR version 3 wants every initializer among the inputs; one input is left for the image.
    initializers = {i.name for i in model.graph.initializer}
    (image,) = [i.name for i in model.graph.input if i.name not in initializers]
    rng = np.random.default_rng(1)
    outputs = np.stack(
        [run(model, {image: rng.standard_normal((1, 3, 224, 224), np.float32)}).ravel() for _ in range(2)]
    )
    assert outputs.shape == (2, 1000)
    assert np.isfinite(outputs).all()
    logits = outputs if name == "light_densenet121" else np.log(outputs)
    assert (0.5 < logits.std(axis=1)).all()
    assert (logits.std(axis=1) < 6).all()
    assert abs(logits[0] - logits[1]).max() > 0.05


def test_light_weights_follow_their_role() -> None:
    model = light_model("light_shufflenet", seed=3)
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            assert (weights[node.input[4]] > 0).all()
        elif node.op_type == "Conv":
            weight = weights[node.input[1]]
            # 2 / fan_in, within five standard errors of a sample variance of so many normal numbers.
            assert abs(weight.var() * weight[0].size - 2) < 5 * 2 * np.sqrt(2 / weight.size)
    again = light_model("light_shufflenet", seed=3)
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    other = light_model("light_shufflenet", seed=4)
    assert other.SerializeToString(deterministic=True) != model.SerializeToString(deterministic=True)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="light_resnet18"):
        light_model("light_resnet18")
    with pytest.raises(ConfigError, match="resnet18"):
        topologies.main("resnet18", tmp_path / "x.onnx")


def test_a_missing_package_names_its_extra() -> None:
    with pytest.raises(ConfigError, match=r"no_such_package.*fgq\[text\]"):
        require("no_such_package", "text")


def test_importing_the_scripts_does_not_import_torch(tmp_path: Path) -> None:
    code = "import sys, fgq.eval.topologies, fgq.eval.retrieval; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"


def test_the_script_writes_the_model(tmp_path: Path) -> None:
    path = tmp_path / "resnet50.onnx"
    topologies.main("resnet50", path, small=True, torchscript=True)
    onnx.checker.check_model(path)
    assert [p.name for p in tmp_path.iterdir()] == ["resnet50.onnx"]


def test_a_place_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    model = light_model("light_squeezenet")
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="taken"):
        save_onnx(model, tmp_path / "taken")
    with pytest.raises(OutputError, match="nowhere"):
        save_onnx(model, tmp_path / "nowhere" / "model.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
