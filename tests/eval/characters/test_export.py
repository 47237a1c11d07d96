import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from fgq.eval.characters.export import export, to_onnx  # noqa: E402
from fgq.eval.characters.network import CharacterNet  # noqa: E402


def random_network(seed):
    """A network whose batch normalizations do something: random statistics, gammas of both signs."""
    generator = torch.Generator().manual_seed(seed)
    network = CharacterNet().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                spread = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)
        network.fc.bias.copy_(torch.randn(network.fc.bias.shape, generator=generator))
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                for value in (layer.weight, layer.bias, layer.running_mean):
                    value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
                layer.running_var.copy_(0.5 + torch.rand(layer.running_var.shape, generator=generator))
    return network


@pytest.mark.parametrize("batch", [1, 5])
def test_exported_logits_equal_those_of_pytorch(batch):
    network = random_network(0)
    session = onnxruntime.InferenceSession(
        to_onnx(network).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    image = np.random.default_rng(1).random((batch, 1, 32, 32), np.float32)
    (got,) = session.run(["logits"], {"image": image})
    with torch.inference_mode():
        wanted = network(torch.from_numpy(image)).numpy()
    assert got.shape == (batch, 128)
    # Two float32 programs sum up to 2304 products per output in different orders, 19 layers deep: errors of
    # a few hundred units in the last place (6e-8) of the largest logit.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_export_writes_the_file_and_nothing_beside_it(tmp_path):
    export(random_network(0), tmp_path / "network.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]


def test_export_is_reproducible():
    assert to_onnx(random_network(3)).SerializeToString() == to_onnx(random_network(3)).SerializeToString()
