"""Checkpoints of a training run: written whole, and checked field by field before anything takes them.

PyTorch's file holds a pickle; the restricted reader of ``torch.load(weights_only=True)`` makes tensors and
plain values of it, and runs no code.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fgq.errors import ConfigError, OutputError, first_line
from fgq.support.schema import Kind, UnfitError, check, inside, number, optional, shown, table, whole

if TYPE_CHECKING:
    from fgq.train.trainer import Schedule

_OVERHEAD = 16 << 20
"""Bytes of a checkpoint beside those of its tensors, at most."""

_SET_EACH_STEP = "lr"


def save(
    path: Path,
    schedule: Schedule,
    student: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    """Write a checkpoint; a kill meanwhile leaves the one before.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    beside = path.with_suffix(".tmp")
    state = {
        "schedule": asdict(schedule),
        "step": step,
        "student": student.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    try:
        torch.save(state, beside)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # the latter of PyTorch's own writer
        with suppress(OSError):
            beside.unlink()
        raise OutputError(f"{path}: cannot be written ({first_line(error)})") from None


def restore(
    path: Path,
    schedule: Schedule,
    student: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Take up a checkpoint, all of it or nothing, and return how many steps were done.

    Raises
    ------
    ConfigError
        If it is missing, damaged, of another schedule, or of another network.
    """
    wanted = asdict(schedule)
    kind = table(
        {
            "schedule": table({}, dict.fromkeys(wanted, _plain)),
            "step": whole(0, schedule.steps),
            "student": tensors_like(student.state_dict()),
            "average": tensors_like(average.state_dict()),
            "optimizer": moments_of(optimizer),
        }
    )
    value = read(path, (student, average))
    found = value.get("schedule") if isinstance(value, dict) else None
    if isinstance(found, dict):  # before the rest: another schedule may well have another network
        for name in wanted:
            given = found.get(name)
            if name != "checkpoint_every" and not _is_same(given, wanted[name]):
                raise ConfigError(f"{path}: found a run with {name} {shown(given)}, wanted {wanted[name]}")
    state = check(kind, value, str(path), ConfigError)
    student.load_state_dict(state["student"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def read(path: Path, modules: Iterable[nn.Module]) -> object:
    """Return what a checkpoint holds: tensors and plain values, not yet checked.

    Parameters
    ----------
    path : Path
    modules : iterable of torch.nn.Module
        Whose tensors it holds, with two more of each for an optimizer: a larger file is refused unread.

    Raises
    ------
    ConfigError
        If it is missing, damaged or too large.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: found no checkpoint, wanted one to go on from; omit --resume")
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    most = 3 * sum(tensor.nbytes for tensor in tensors) + _OVERHEAD
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > most:
            raise ConfigError(f"{path}: found {size} bytes of tensors, wanted at most {most} of this network")
        return torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except Exception as error:  # whatever zipfile and PyTorch raise for hostile bytes
        raise ConfigError(
            f"{path}: found a damaged file ({first_line(error)[:120]}), wanted a checkpoint to go on from; "
            "omit --resume"
        ) from None


def tensors_like(wanted: Mapping[str, Tensor]) -> Kind[dict[str, Tensor]]:
    """Return the kind of a module's state: the same names, shapes and types, and finite numbers."""
    return table({name: _tensor(tensor) for name, tensor in wanted.items()})


def moments_of(optimizer: torch.optim.Optimizer) -> Kind[dict[str, Any]]:
    """Return the kind of the state of AdamW or SGD, with its options as they are."""
    own = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = [
        table({"params": _same(group["params"])}, {name: _option(name, each) for name, each in group.items()})
        for group in own["param_groups"]
    ]

    def param_groups(value: object) -> list[dict[str, Any]]:
        if not isinstance(value, list) or len(value) != len(groups):
            raise UnfitError(shown(value), f"{len(groups)} groups")
        pairs = enumerate(zip(groups, value, strict=True))
        return [inside(kind, group, str(index)) for index, (kind, group) in pairs]

    def state(value: object) -> dict[int, dict[str, Tensor]]:
        if not isinstance(value, dict):
            raise UnfitError(shown(value), "the moments of each parameter")
        found = {}
        for index, moments in value.items():
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(parameters):
                raise UnfitError(shown(index), f"the numbers of {len(parameters)} parameters")
            found[index] = inside(_moments(optimizer, parameters[index].detach()), moments, str(index))
        return found

    return table({"state": state, "param_groups": param_groups})


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Kind[dict[str, Any]]:
    if isinstance(optimizer, torch.optim.SGD):
        return table({"momentum_buffer": optional(_tensor(parameter))})
    step, squares = _tensor(torch.zeros(()), least=0), _tensor(parameter, least=0)
    return table({"step": step, "exp_avg": _tensor(parameter), "exp_avg_sq": squares})


def _tensor(wanted: Tensor, least: float = -math.inf) -> Kind[Tensor]:
    # what a module itself holds, as ranges that nothing was observed for, may be infinite
    finite = not wanted.is_floating_point() or bool(torch.isfinite(wanted).all())
    title = f"{wanted.dtype}{list(wanted.shape)}"

    def kind(value: object) -> Tensor:
        if not isinstance(value, Tensor):
            raise UnfitError(shown(value), title)
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UnfitError(f"a tensor in {value.layout} on {value.device}", title)
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            raise UnfitError(f"{value.dtype}{list(value.shape)}", title)
        if finite and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UnfitError("values that are not finite", "finite ones")
        if value.numel() and not bool((value >= least).all()):
            raise UnfitError(f"values below {least}", "none")
        return value

    return kind


def _option(name: str, wanted: object) -> Kind[object]:
    return number(least=0) if name == _SET_EACH_STEP else _same(wanted)


def _same(wanted: object) -> Kind[object]:
    def kind(value: object) -> object:
        if not _is_same(value, wanted):
            raise UnfitError(shown(value), shown(wanted))
        return value

    return kind


def _plain(value: object) -> object:
    entries = value if isinstance(value, tuple | list) else (value,)
    if not all(entry is None or isinstance(entry, bool | int | float | str) for entry in entries):
        raise UnfitError(shown(value), "a plain value")
    return value


def _is_same(found: object, wanted: object) -> bool:
    """Tell whether two plain values are equal; nothing is asked of values of other types."""
    if isinstance(wanted, tuple | list):
        return (
            isinstance(found, tuple | list)
            and len(found) == len(wanted)
            and all(map(_is_same, found, wanted))
        )
    if not (found is None or isinstance(found, bool | int | float | str)):
        return False
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted
