import csv
import subprocess
import sys
from pathlib import Path

import networks
import pytest
import torch
from torch.utils.data import Subset
from typer.testing import CliRunner

from fgq.cli import app
from fgq.errors import ConfigError, DataError
from fgq.quantization.scheme import WeightScheme
from fgq.train import calibrate, prepare
from fgq.train.trainer import (
    CHECKPOINT,
    METRICS,
    Data,
    Schedule,
    TrainingError,
    rows_of_step,
    train,
)

SHORT = Schedule(steps=6, batch=16, rate=1e-3, warm_up=2, checkpoint_every=3, gradual=4)


def student():
    images = networks.data().train.images[:32]
    module = prepare(networks.network(), WeightScheme(group_size=8), (images[:2],))
    calibrate(module, [(images,)])
    return module


def losses(folder):
    with (folder / METRICS).open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def test_the_loss_falls(tmp_path):
    schedule = Schedule(steps=20, batch=32, rate=3e-3, warm_up=2, distillation=0.0, ema=0.5)
    train(student(), networks.data(), schedule, tmp_path)
    found = [loss for _, loss in losses(tmp_path)]
    assert sum(found[-5:]) < sum(found[:5])


def test_a_killed_run_goes_on_to_the_same_losses_and_weights(tmp_path):
    whole = train(student(), networks.data(), SHORT, tmp_path / "a", teacher=networks.network())

    class Killed(Exception):  # noqa: N818
        pass

    def kill(stage, done, total):
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        train(student(), networks.data(), SHORT, tmp_path / "b", teacher=networks.network(), progress=kill)
    resumed = train(
        student(), networks.data(), SHORT, tmp_path / "b", teacher=networks.network(), resume=True
    )
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_every_sample_is_taken_once_an_epoch():
    rows = [row for step in range(5) for row in rows_of_step(10, 4, 0, step)]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert rows_of_step(3, 8, 0, 2) == rows_of_step(3, 8, 0, 2)


def test_two_processes_give_the_result_of_one(tmp_path):
    script = Path(networks.__file__).with_name("two_processes.py")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            script,
            tmp_path,
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    alone = train(student(), networks.data(), SHORT, tmp_path / "alone", teacher=networks.network())
    together = torch.load(tmp_path / "together.pt", weights_only=True)
    for name, value in alone.state_dict().items():
        # sums of gradients in another order, and Adam's quotient magnifies it where a gradient is near 0
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=2e-4)


def test_a_loss_of_nan_names_step_layer_and_checkpoint(tmp_path):
    module = student()
    with torch.no_grad():
        module.get_submodule("mix").bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 1: .* first in mix, .*no checkpoint was written yet"):
        train(module, networks.data(), SHORT, tmp_path)


def test_bad_data_are_refused(tmp_path):
    data = networks.data()
    with pytest.raises(DataError, match="training data: found no samples"):
        train(student(), Data(Subset(data.train, []), data.validation), SHORT, tmp_path)
    wrong = Data(networks.Blobs(classes=7), data.validation)
    with pytest.raises(DataError, match=r"label: found [56], wanted 0\.\.4"):
        train(student(), wrong, SHORT, tmp_path)


@pytest.mark.parametrize("option", ["steps", "batch", "rate", "distillation", "ema", "warm_up"])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ConfigError, match=option):
        Schedule(**{option: -1})


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.99)])
def test_decays_of_the_optimizer_out_of_range_are_refused(betas):
    with pytest.raises(ConfigError, match=r"betas: found \(.*\), wanted both at least 0 and below 1"):
        Schedule(betas=betas)


def test_resuming_needs_a_checkpoint_of_the_same_schedule(tmp_path):
    with pytest.raises(ConfigError, match="found no checkpoint"):
        train(student(), networks.data(), SHORT, tmp_path, resume=True)
    train(student(), networks.data(), SHORT, tmp_path)
    assert (tmp_path / CHECKPOINT).is_file()
    other = Schedule(steps=7, batch=16)
    with pytest.raises(ConfigError, match="found a run with steps 6, wanted 7"):
        train(student(), networks.data(), other, tmp_path, resume=True)


def test_the_command_writes_a_model(tmp_path):
    options = (
        "--model networks:network --data networks:data --steps 2 --batch 8 --group-size 8 --json".split()
    )
    result = CliRunner().invoke(
        app, ["finetune", "-o", str(tmp_path / "m.onnx"), "--folder", str(tmp_path / "run"), *options]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "m.onnx").is_file()
    assert '"left_float": []' in result.output


def test_the_command_refuses_what_it_cannot_import(tmp_path):
    result = CliRunner().invoke(
        app, ["finetune", "-o", str(tmp_path / "m.onnx"), "--model", "nowhere:nothing"]
    )
    assert "nowhere:nothing: cannot be imported" in str(result.exception)
