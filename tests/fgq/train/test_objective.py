import json

import networks
import numpy as np
import onnx
import pytest
import torch
from test_trainer import losses, student
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

import fgq
from fgq.cli import app
from fgq.errors import ConfigError, DataError, ModelError
from fgq.graph.ort import open_session
from fgq.plan.plan_file import plan_of
from fgq.quantization.scheme import Codes, WeightScheme
from fgq.train import export, load_converted, prepare, quantized_layers
from fgq.train.batches import Data, batch_of, rows_of_step
from fgq.train.conversion import plan_for
from fgq.train.finetune import objective_of
from fgq.train.objective import Embeddings, Features, Logits
from fgq.train.trainer import Schedule, score, train


class Encoder(nn.Module):
    """Two inputs of any length, a vector for each sample."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 16)
        self.mix = nn.Linear(16, 24)
        self.norm = nn.LayerNorm(24)
        self.out = nn.Linear(24, 16)

    def forward(self, ids, mask):
        hidden = self.out(self.norm(torch.relu(self.mix(self.table(ids)))))
        weight = mask[:, :, None].to(torch.float32)
        return functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


class Texts(torch.utils.data.Dataset):
    def __init__(self, count=60):
        generator = torch.Generator().manual_seed(1)
        self.lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
        self.rows = [torch.randint(1, 30, (n,), generator=generator) for n in self.lengths]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row]


def collate(rows):
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"mask": (ids > 0).long(), "ids": ids}, None  # in another order than the module's


def encoder():
    torch.manual_seed(2)
    return Encoder().eval()


def texts():
    samples = Texts()
    return Data(samples, samples, collate, samples.lengths)


def cosine():
    return Embeddings()


OPTIONS = (
    "--model test_objective:encoder --data test_objective:texts --objective embeddings --match norm "
    "--exclude table --learned-scales --learned-ranges --steps 30 --batch 8 --rate 3e-3 --warm-up 2 "
    "--group-size 8 --json"
).split()


def test_an_encoder_is_distilled_without_labels_and_the_file_takes_every_length(tmp_path):
    path = tmp_path / "m.onnx"
    options = ["-o", str(path), "--folder", str(tmp_path / "run"), *OPTIONS]
    result = CliRunner().invoke(app, ["finetune", *options])
    assert result.exit_code == 0, result.output
    assert '"measure": "cosine"' in result.output
    assert '"left_float": []' in result.output
    found = [loss for _, loss in losses(tmp_path / "run")]
    assert sum(found[-5:]) < sum(found[:5])
    for count, length in ((1, 3), (3, 7)):
        ids = np.random.default_rng(0).integers(1, 30, (count, length))
        feed = {"ids": ids, "mask": np.ones_like(ids)}
        theirs = open_session(path, "model").run(None, feed)[0]
        assert theirs.shape == (count, 16)
        # float operators behind equal integers
        np.testing.assert_allclose(fgq.Session(path).run(None, feed)[0], theirs, rtol=1e-5, atol=1e-6)


def test_batches_of_one_length_take_every_sample_once_an_epoch():
    lengths = Texts().lengths
    batches = [rows_of_step(60, 8, 0, step, lengths) for step in range(14)]
    for epoch in (batches[:7], batches[7:]):
        rows = [row for batch in epoch for row in batch]
        assert len(set(rows)) == 56  # what does not fill a batch is left out
        assert sum(max(lengths[r] for r in b) - min(lengths[r] for r in b) for b in epoch) <= 6
    assert batches[:7] != batches[7:]
    assert rows_of_step(3, 8, 0, 2, [1, 2, 3]) == rows_of_step(3, 8, 0, 2)


def test_inputs_by_name_take_the_order_of_the_module():
    data = texts()
    ids, mask = batch_of(data, data.train, [0, 1], encoder()).inputs
    assert mask.max() == 1
    assert ids.shape == mask.shape
    wrong = data._replace(collate=lambda rows: ({"tokens": torch.zeros(2)}, None))
    with pytest.raises(DataError, match="wanted the parameters of the module's forward"):
        batch_of(wrong, data.train, [0], encoder())
    with pytest.raises(DataError, match="found a Tensor, wanted a pair of inputs and labels"):
        batch_of(data._replace(collate=torch.cat), data.train, [0], encoder())


def test_features_are_relative_squared_distances():
    teacher, other = encoder(), encoder()
    with torch.no_grad():
        other.norm.weight.mul_(1.1)  # its bias is 0: all of the vectors grow by a tenth
    features = Features(other, teacher, ("nor*",))
    assert features.names == ["norm"]
    inputs = batch_of(texts(), texts().train, [0, 1, 2], teacher).inputs
    with features.watched():
        teacher(*inputs)
        other(*inputs)
    assert features.distance().item() == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(ConfigError, match="found no module 'nothing' that student and teacher call"):
        Features(other, teacher, ("nothing",))


def test_the_loss_of_logits_is_that_of_torch_and_of_embeddings_the_cosine():
    generator = torch.Generator().manual_seed(0)
    found, wanted = torch.randn(2, 6, 5, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    plain = Logits(0.0, 2.0).loss(found, labels, wanted)
    torch.testing.assert_close(plain, functional.cross_entropy(found, labels))
    p, q = (torch.softmax(x.double() / 2, -1) for x in (wanted, found))
    divergence = (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(Logits(1.0, 2.0).loss(found, labels, wanted).double(), 4 * divergence)
    assert Embeddings().loss(wanted, None, 3 * wanted).item() == pytest.approx(0, abs=1e-6)
    assert Embeddings().loss(-wanted, None, wanted).item() == pytest.approx(2, abs=1e-6)


def test_objectives_that_lack_something_say_so():
    with pytest.raises(DataError, match="label: found none"):
        Logits(0.5, 1.0).loss(torch.zeros(2, 3), None, torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="without a teacher"):
        Embeddings().scores(torch.zeros(2, 3), None, None)
    with pytest.raises(ConfigError, match="found 'angles', wanted logits, embeddings or module:function"):
        objective_of("angles", Schedule())
    assert isinstance(objective_of("test_objective:cosine", Schedule()), Embeddings)
    data = networks.data()
    with pytest.raises(DataError, match=r"label: found [56], wanted 0\.\.4"):
        score(networks.network(), Data(data.train, networks.Blobs(classes=7)), Logits(0.0, 1.0))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what the compiler itself imports is deprecated
def test_compiled_formulas_give_the_losses_of_plain_ones(tmp_path):
    for name, compiles in (("plain", False), ("compiled", True)):
        schedule = Schedule(steps=2, batch=16, compile=compiles)
        train(student(), networks.data(), schedule, tmp_path / name)
    # sums in another order
    found = [[loss for _, loss in losses(tmp_path / name)] for name in ("plain", "compiled")]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def float_model(tmp_path, name, gain=None):
    """The encoder under other names as a file, and a feed."""
    from fgq.eval.torch_export import export_onnx

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = encoder()
            if gain is not None:
                self.inner.norm.weight.data.copy_(gain)

        def forward(self, ids, mask):
            return self.inner(ids, mask)

    ids = torch.randint(1, 30, (3, 5), generator=torch.Generator().manual_seed(0))
    inputs = {"ids": ids, "mask": torch.ones_like(ids)}
    dynamic = {key: {0: "batch", 1: "sequence"} for key in inputs}
    model = export_onnx(Wrapped(), inputs, "vector", dynamic, "dynamo")
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    return path, {key: value.numpy() for key, value in inputs.items()}


def test_the_layers_of_a_conversion_and_of_a_plan_are_found_by_the_float_weights(tmp_path):
    path, feed = float_model(tmp_path, "float")
    model, report = fgq.convert(path, group_size=8, calibration=feed, recipe="fgq")
    example = tuple(torch.from_numpy(value) for value in feed.values())
    module = prepare(encoder(), WeightScheme(group_size=8), example, scales="learned", plan={"table": None})
    names = [layer.name for layer in report.layers if layer.operator == "MatMul"]
    entries = {names[0]: {"codes": "int4", "group_size": 8}, names[1]: {"codes": "float"}}
    plan = plan_of({"format": "fgq plan 1", "layers": entries})
    schemes = plan_for(module, plan, path)
    assert schemes["out"] is None
    assert schemes["mix"] == WeightScheme(codes=Codes.INT4, group_size=8)
    with pytest.raises(ConfigError, match="found no layer of this name or its weights"):
        plan_for(module, plan)

    wanted = {name: layer.tensor() for name, layer in quantized_layers(module).items()}
    (gain,) = (value for value in model.graph.initializer if value.name == "inner.norm.weight")
    gains = np.linspace(0, 1, 24, dtype=np.float32)
    gain.CopyFrom(onnx.numpy_helper.from_array(gains, "norm.weight"))
    (node,) = (node for node in model.graph.node if "inner.norm.weight" in node.input)
    node.input[1] = "norm.weight"
    (tmp_path / "converted.onnx").write_bytes(model.SerializeToString())
    found = load_converted(module, tmp_path / "converted.onnx", path)
    assert sorted(found) == ["mix", "out"]
    np.testing.assert_array_equal(quantized_layers(module)["mix"].tensor().int8(), wanted["mix"].int8())
    np.testing.assert_array_equal(module.norm.weight.detach(), gains)


def test_codes_of_weights_that_took_scales_are_refused(tmp_path):
    path, feed = float_model(tmp_path, "float", gain=torch.where(torch.arange(24) % 8 == 0, 40.0, 1.0))
    options = {"group_size": 8, "calibration": feed, "recipe": "fgq", "activations": "int4"}
    example = tuple(torch.from_numpy(value) for value in feed.values())
    module = prepare(encoder(), WeightScheme(group_size=8), example, plan={"table": None})
    for smooth in (True, False):
        model, _ = fgq.convert(path, smooth=smooth, **options)
        (tmp_path / "converted.onnx").write_bytes(model.SerializeToString())
        if smooth:
            with pytest.raises(ModelError, match=r"found weights that took scales .* --no-smooth"):
                load_converted(module, tmp_path / "converted.onnx", path)
        else:
            assert "mix" in load_converted(module, tmp_path / "converted.onnx", path)


def test_weights_that_have_lost_their_names_are_written_all_the_same(tmp_path):
    # PyTorch transposes a Linear's weight of three axes while it exports, and calls the result anything.
    from fgq.train import calibrate

    inputs = batch_of(texts(), texts().train, [0, 1, 2], encoder()).inputs
    module = prepare(encoder(), WeightScheme(group_size=8), inputs, plan={"table": None})
    calibrate(module, [inputs])
    assert export(module.eval(), tmp_path / "m.onnx", inputs, input_names=["ids", "mask"]) == []


def test_the_command_takes_a_plan_and_refuses_data_that_yield_nothing(tmp_path):
    schemes = {"stem": "float", "left": "tied", "right": "ternary", "deep": "int8", "mix": "int4",
               "hidden": "ternary", "head": "int8"}  # fmt: skip
    sized = ("tied", "ternary", "int4")
    layers = {k: {"codes": v} | ({"group_size": 8} if v in sized else {}) for k, v in schemes.items()}
    (tmp_path / "plan.json").write_text(json.dumps({"format": "fgq plan 1", "layers": layers}))
    options = ["-o", str(tmp_path / "m.onnx"), "--folder", str(tmp_path / "run"), "--steps", "1",
               "--batch", "8", "--model", "networks:network"]  # fmt: skip
    plan = ["--plan", str(tmp_path / "plan.json")]
    result = CliRunner().invoke(app, ["finetune", *options, *plan, "--data", "networks:data"])
    assert result.exit_code == 0, result.output
    nodes = {node.name or node.op_type: node for node in onnx.load(tmp_path / "m.onnx").graph.node}
    unpacked = [name for name in nodes if nodes[name].op_type == "Unpack"]
    assert len(unpacked) == 4  # neither the 8-bit layers nor the float one
    result = CliRunner().invoke(app, ["finetune", *options, "--data", "test_objective:nothing"])
    assert "training data: found no samples" in str(result.exception)


def nothing():
    data = networks.data()
    return Data(torch.utils.data.Subset(data.train, []), data.validation)
