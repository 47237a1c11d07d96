"""Checkpoints that are not what was written are refused in one line, and nothing of them is taken."""

import copy
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from fgq.errors import ConfigError, OutputError
from fgq.train.checkpoint import restore, save
from fgq.train.trainer import METRICS, Schedule, _Metrics

SCHEDULE = Schedule(steps=9, batch=4, rate=0.1)


def parts(width=4, steps=0):
    """A network, its average and an optimizer, after some steps."""
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(width, 3), nn.BatchNorm1d(3))
    average = torch.optim.swa_utils.AveragedModel(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    for _ in range(steps):
        optimizer.zero_grad()
        student(torch.randn(5, width)).square().sum().backward()
        optimizer.step()
        average.update_parameters(student)
    return student, average, optimizer


@pytest.fixture
def path(tmp_path):
    save(tmp_path / "checkpoint.pt", SCHEDULE, *parts(steps=3), 3)
    return tmp_path / "checkpoint.pt"


def test_all_of_a_checkpoint_is_taken_up(path):
    new, old = parts(), parts(steps=3)
    assert restore(path, SCHEDULE, *new) == 3
    for mine, theirs in zip(new[:2], old[:2], strict=True):
        for name, value in theirs.state_dict().items():
            assert torch.equal(mine.state_dict()[name], value)
    moments, wanted = (each[2].state_dict()["state"] for each in (new, old))
    assert moments.keys() == wanted.keys()
    for index, each in wanted.items():
        assert all(torch.equal(moments[index][name], value) for name, value in each.items())
    assert not path.with_suffix(".tmp").exists()


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def changed(path, place, value):
    """Write the checkpoint again with another value in one place."""
    state = torch.load(path, weights_only=True)
    holder = state
    for name in place[:-1]:
        holder = holder[name]
    if value is None:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    torch.save(state, path)


NAN = torch.full((3, 4), torch.nan)
CHANGES = {
    "no schedule": (["schedule"], None, "schedule: found nothing"),
    "the schedule is a list": (["schedule"], [], "schedule: found a list"),
    "steps of another type": (
        ["schedule", "steps"],
        torch.ones(2),
        "found a run with steps tensor.*, wanted 9",
    ),
    "a decay that is none": (
        ["schedule", "betas"],
        (torch.ones(2), 0.9),
        "found a run with betas .*, wanted",
    ),
    "another schedule": (["schedule", "rate"], 0.2, "found a run with rate 0.2, wanted 0.1"),
    "one more option": (["schedule", "more"], 1, "schedule: found 'more', wanted"),
    "the step is text": (["step"], "x", "step: found 'x', wanted a whole number of 0 to 9"),
    "a step beyond the last": (["step"], 10, "step: found 10, wanted"),
    "a step below 0": (["step"], -1, "step: found -1, wanted"),
    "a large step": (["step"], 10**30, "step: found a whole number of 100 bits"),
    "a step that is a tensor": (["step"], torch.tensor(3), "step: found tensor"),
    "no weights": (["student"], {}, "student: 0.weight: found nothing"),
    "a matrix for a step": (["step"], NAN, "step: found tensor"),
    "weights are a number": (["student", "0.weight"], 3, "student: 0.weight: found 3, wanted torch.float32"),
    "weights of another shape": (["student", "0.weight"], torch.ones(3, 5), r"float32\[3, 5\], wanted"),
    "weights of another type": (
        ["average", "module.0.weight"],
        torch.ones(3, 4).double(),
        "found torch.float64",
    ),
    "weights of NaN": (["student", "0.weight"], NAN, "0.weight: found values that are not finite"),
    "sparse weights": (
        ["student", "0.weight"],
        torch.ones(3, 4).to_sparse(),
        "found a tensor in torch.sparse",
    ),
    "one more weight": (["student", "more"], torch.ones(1), "student: found 'more', wanted"),
    "no optimizer": (["optimizer"], {}, "optimizer: state: found nothing"),
    "no groups": (["optimizer", "param_groups"], [], r"param_groups: found \[\], wanted 1 groups"),
    "groups of others": (["optimizer", "param_groups", 0, "params"], [0, 1], "params: found .0, 1., wanted"),
    "another decay": (
        ["optimizer", "param_groups", 0, "weight_decay"],
        0.5,
        "weight_decay: found 0.5, wanted 0",
    ),
    "another direction": (
        ["optimizer", "param_groups", 0, "maximize"],
        True,
        "maximize: found True, wanted False",
    ),
    "a rate of text": (["optimizer", "param_groups", 0, "lr"], "x", "lr: found 'x', wanted a finite number"),
    "moments of no parameter": (["optimizer", "state", 99], {}, "state: found 99, wanted the numbers of 4"),
    "moments by names": (["optimizer", "state", "0"], {}, "state: found '0', wanted the numbers"),
    "half the moments": (["optimizer", "state", 0, "exp_avg"], None, "state: 0: exp_avg: found nothing"),
    "moments of NaN": (
        ["optimizer", "state", 0, "exp_avg"],
        NAN,
        "exp_avg: found values that are not finite",
    ),
    "squares below 0": (["optimizer", "state", 0, "exp_avg_sq"], -torch.ones(3, 4), "found values below 0"),
    "another group": (["optimizer", "more"], 1, "optimizer: found 'more'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_checkpoints(path, change):
    place, value, message = CHANGES[change]
    changed(path, place, value)
    refused_whole(path, message)


def refused_whole(path, message):
    """A checkpoint is refused by a line that names it, and leaves everything as it was."""
    new = parts(steps=1)
    before = copy.deepcopy([each.state_dict() for each in new])
    with pytest.raises(ConfigError, match=message) as refused:
        restore(path, SCHEDULE, *new)
    assert str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)
    for state, each in zip(before[:2], new[:2], strict=True):
        assert all(torch.equal(value, each.state_dict()[name]) for name, value in state.items())
    assert str(before[2]) == str(new[2].state_dict())


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"hello",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:100] + bytes(100) + data[200:],
    ],
)
def test_damaged_files(path, damage):
    path.write_bytes(damage if isinstance(damage, bytes) else damage(path.read_bytes()))
    refused_whole(path, "found a damaged file|found nothing|found a")


@pytest.mark.parametrize("of_today", [True, False])
def test_code_in_a_checkpoint_does_not_run(path, monkeypatch, tmp_path, of_today):
    monkeypatch.chdir(tmp_path)
    torch.save({"schedule": Evil()}, path, _use_new_zipfile_serialization=of_today)
    refused_whole(path, "found a damaged file")
    assert not (tmp_path / "pwned").exists()


def test_a_file_that_unpacks_to_more_than_the_network_is_not_read(path):
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("checkpoint/data/99", bytes(32 << 20))
    assert path.stat().st_size < 1 << 20
    refused_whole(path, "found .* bytes of tensors, wanted at most")


def test_a_checkpoint_of_another_network(path):
    with pytest.raises(
        ConfigError, match=r"student: 0.weight: found torch.float32\[3, 4\], wanted .*\[3, 7\]"
    ):
        restore(path, SCHEDULE, *parts(width=7))


def test_what_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OutputError, match=r"checkpoint.pt: cannot be written"):
        save(tmp_path / "nowhere" / "checkpoint.pt", SCHEDULE, *parts(), 0)


def test_rows_of_damaged_metrics_are_dropped(tmp_path):
    (tmp_path / METRICS).write_bytes(
        b"step,loss,rate,strength\n1,0.5,0.1,1\n\n\xb2,1,1,1\n2,0.4\n2,0.4,0.1,1\n"
        + b"9" * 5000
        + b",1,1,1\n\xff\n"
    )
    _Metrics(tmp_path, 5, False).close()
    assert (tmp_path / METRICS).read_text().splitlines() == [
        "step,loss,rate,strength",
        "1,0.5,0.1,1",
        "2,0.4,0.1,1",
    ]
