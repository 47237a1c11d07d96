"""Changed configurations, plans, metadata, unfinished layers and training checkpoints.

::

    python tests/fuzz/mutate_documents.py --seed 0 --count 10000

Documents are changed as values (other types, large numbers, missing and unknown fields) and as text or
bytes. Each is refused in one line, or accepted with values that are within their ranges; a finished layer is
taken up as it was, or not at all.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import math
import shutil
import tempfile
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import workers  # first: it sets the number of threads
from mutating import byte_by_byte
from onnx import numpy_helper
from workers import Case, Outcome, judge, run_cases, stage

import fgq
from fgq.config import ConversionConfig, read_config
from fgq.converters.float_layers import Layer, find_layers
from fgq.converters.passes import prepare
from fgq.converters.passes.move_scales import repeat_moves
from fgq.converters.reader import read_float_model
from fgq.format.container import SCALED_KEY
from fgq.plan import read_plan
from fgq.quantization.scheme import WeightScheme
from fgq.quantization.weights import quantize_weight
from fgq.recipes.checkpoint import Checkpoint, Finished
from fgq.train import checkpoint
from fgq.train.trainer import Schedule

MEGABYTES = 1000

SCHEME = WeightScheme(group_size=4)

TEXT = """<ir_version: 8, opset_import: ["" : 17]> small (float[N,12] x) => (float[N,4] y) {
    a = MatMul(x, u)
    b = Relu(a)
    c = Gemm(b, v, k)
    d = Relu(c)
    y = MatMul(d, w)
}"""

_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 64, 255, 10**6, 10**18, 10**30, 10**400, -(10**30), 0.5, 1e-300,
    1e300, 1.0, 4.0, float("nan"), float("inf"), float("-inf"), "", "4", "ternary", "int8", "packed",
    "(", "(a+)+$", "x" * 5000, "\0", "é", [], [1], ["feedback"], ["feedback"] * 9, [[[]]], {}, {"a": 1},
    {"": None},
)  # fmt: skip
"""What stands in the place of a value."""


def make(seed: int) -> Case:
    """Return the case of a seed: its index gives everything else."""
    folder = tempfile.TemporaryDirectory(prefix="fgq-fuzz-")
    kinds = (config_case, config_case, plan_case, plan_case, layer_case, metadata_case, training_case)
    prepared()

    def case(index: int) -> Outcome:
        rng = np.random.default_rng([seed, index])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kinds[int(rng.integers(len(kinds)))](Path(folder.name), rng, index)

    return case


def run(seed: int, count: int) -> list[str]:
    """Return the faults among the first cases of a seed."""
    outcomes = run_cases(make(seed), range(count), seconds=30, megabytes=MEGABYTES)
    return [f"{one.index}: {one.kind}: {one.detail}" for one in outcomes if one.is_fault]


@dataclass(frozen=True)
class Prepared:
    """A small model and what its conversions leave.

    Parameters
    ----------
    model : onnx.ModelProto
    layers : list of Layer
    scales : str
        Its metadata of moved scales.
    finished : dict of str to Finished
        By the layers' names.
    training : bytes
        A training checkpoint.
    """

    model: onnx.ModelProto
    layers: list[Layer]
    scales: str
    finished: dict[str, Finished]
    training: bytes


@functools.cache
def prepared() -> Prepared:
    """Convert a small model, and make a checkpoint of its layers and one of a training run."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(TEXT)
    for name, shape in {"u": (12, 16), "v": (16, 8), "k": (8,), "w": (8, 4)}.items():
        drawn = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(drawn, name))
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
    samples = rng.standard_normal((32, 12)).astype(np.float32) * (1 + 30 * (np.arange(12) == 3))
    options: dict[str, Any] = {
        "activations": "int4",
        "smooth": True,
        "first_last_int8": False,
        "group_size": 4,
    }
    converted, _ = fgq.convert(model, calibration={"x": samples.astype(np.float32)}, recipe="fgq", **options)
    scales = {entry.key: entry.value for entry in converted.metadata_props}.get(SCALED_KEY, "[]")
    read = read_float_model(model)
    prepare(read)
    layers = [layer for layer in find_layers(read) if isinstance(layer, Layer)]
    finished = {}
    for layer in layers:
        axes = {"group_axis": layer.group_axis, "channel_axis": layer.channel_axis}
        weight = quantize_weight(layer.weight_array, SCHEME, **axes)
        bias = np.arange(layer.shape[layer.channel_axis], dtype=np.float32)
        finished[layer.name] = Finished(weight, bias, ("few samples",), None)
    state = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        checkpoint.save(path, Schedule(), *_training(), 3)
        state.write(path.read_bytes())
    return Prepared(model, layers, scales, finished, state.getvalue())


def _training() -> tuple[torch.nn.Module, torch.nn.Module, torch.optim.Optimizer]:
    student = torch.nn.Linear(4, 3)
    average = torch.optim.swa_utils.AveragedModel(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.1)
    student(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return student, average, optimizer


def config_case(folder: Path, rng: np.random.Generator, index: int) -> Outcome:
    """A configuration in TOML or JSON."""
    options = {field.name: field.default for field in fields(ConversionConfig)}
    chosen = [name for name in options if rng.random() < 0.3]
    given = {name: options[name] for name in chosen if options[name] is not None}
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    given |= {"group_size": int(rng.choice([4, 16, 64]))}
    given = change(given, rng)
    is_json = bool(rng.random() < 0.5)
    path = folder / f"options.{'json' if is_json else 'toml'}"
    path.write_bytes(text_of(given, rng, is_json=is_json))
    stage("config")
    try:
        config = ConversionConfig(**read_config(path))
    except Exception as error:
        return judge(error, index, "config")
    return _accepted(index, "config", _wrong_config(config))


def _wrong_config(config: ConversionConfig) -> str:
    values = asdict(config)
    numbers = [value for value in values.values() if isinstance(value, int | float) and value is not None]
    if not all(math.isfinite(value) and 0 <= value < 2**63 for value in numbers):
        return f"found a number beyond use: {values}"
    if type(config.group_size) is not int or not 1 <= config.group_size <= 2**31:
        return f"group size {config.group_size!r}"
    if any(type(values[name]) is not bool for name in ("first_last_int8", "x86_without_vnni")):
        return f"no flag: {values}"
    return ""


def plan_case(folder: Path, rng: np.random.Generator, index: int) -> Outcome:
    """A plan; at times a conversion by it."""
    names = [layer.name for layer in prepared().layers]
    codes = [("ternary", 4), ("tied", 4), ("int4", 8), ("int8", None), ("float", None)]
    layers: dict[str, Any] = {}
    for name in names:
        kind, size = codes[int(rng.integers(len(codes)))]
        layers[name] = {"codes": kind} | ({} if size is None else {"group_size": size})
        if rng.random() < 0.4:
            layers[name]["sensitivities"] = {"ternary N=4": 0.25}
    plan: dict[str, Any] = {
        "format": "fgq plan 1",
        "layers": layers,
        "measure": "x",
        "budgets": {"bits": 4.0},
        "takes": {"bits": 2.0},
    }
    if rng.random() < 0.9:
        plan = change(plan, rng)
    path = folder / "plan.json"
    path.write_bytes(text_of(plan, rng, is_json=True))
    stage("plan")
    try:
        read = read_plan(path)
        if rng.random() < 0.3:
            stage("conversion by a plan")
            fgq.convert(prepared().model, plan=read, activations="none", recipe="fgq")
    except Exception as error:
        return judge(error, index, "plan")
    numbers = [*read.budgets.values(), *read.takes.values()]
    return _accepted(index, "plan", "" if all(map(math.isfinite, numbers)) else f"found {numbers}")


def layer_case(folder: Path, rng: np.random.Generator, index: int) -> Outcome:
    """A folder of unfinished layers."""
    place, known = folder / "out.unfinished", prepared()
    shutil.rmtree(place, ignore_errors=True)
    kept = Checkpoint(place, "key", resume=False)
    for layer in known.layers:
        kept.write(layer, known.finished[layer.name])
    files = sorted(place.iterdir())
    for _ in range(int(rng.choice([1, 1, 2]))):
        path = files[int(rng.integers(len(files)))]
        other = files[int(rng.integers(len(files)))].read_bytes()
        kind = rng.random()
        if kind < 0.5:
            path.write_bytes(byte_by_byte(path.read_bytes(), other, rng))
        elif kind < 0.65:
            path.write_bytes(other)
        elif kind < 0.75:
            path.unlink(missing_ok=True)
            path.write_bytes(b"")
        elif path.suffix == ".npz":
            _change_arrays(path, rng)
    stage("unfinished layers")
    try:
        found = Checkpoint(place, "key", resume=True)
        layers = [(layer, found.read(layer, SCHEME)) for layer in known.layers]
    except Exception as error:
        return judge(error, index, "unfinished layers")
    for layer, finished in layers:
        if finished is not None and not _same_layer(finished, known.finished[layer.name]):
            return Outcome(
                index, "difference", "a finished layer is taken up otherwise than it was", layer.name
            )
    return Outcome(index, "ok")


def _change_arrays(path: Path, rng: np.random.Generator) -> None:
    try:
        with np.load(path) as archive:
            arrays = {name: archive[name].copy() for name in archive.files}
    except Exception:  # changed before
        return
    name = str(rng.choice(list(arrays)))
    array = arrays[name]
    kind = int(rng.integers(5))
    if kind == 0:
        arrays.pop(name)
    elif kind == 1 and array.size and array.dtype.kind in "iuf":
        array.reshape(-1)[int(rng.integers(array.size))] = int(rng.choice([0, 1, 100]))
    elif kind == 2:
        arrays[name] = array.reshape(-1)
    elif kind == 3 and array.dtype.kind in "iuf":
        arrays[name] = array.astype(np.float64)
    else:
        arrays[f"{name}1"] = array
    np.savez(path, **arrays)


def _same_layer(one: Finished, other: Finished) -> bool:
    pairs = [(one.weight.row_scale, other.weight.row_scale), (one.weight.group, other.weight.group)]
    for a, b in zip(one.weight.planes, other.weight.planes, strict=True):
        pairs += [(a.codes, b.codes), (a.alpha, b.alpha)]
    assert one.bias is not None
    assert other.bias is not None
    pairs.append((one.bias, other.bias))
    return all(np.array_equal(a, b) for a, b in pairs) and one.warnings == other.warnings


def metadata_case(folder: Path, rng: np.random.Generator, index: int) -> Outcome:
    """Scales of channels in a converted model's metadata."""
    value = (
        change(json.loads(prepared().scales), rng) if rng.random() < 0.8 else json.loads(prepared().scales)
    )
    text = text_of(value, rng, is_json=True).decode("utf-8", errors="replace")
    stage("metadata")
    try:
        model, converted = read_float_model(prepared().model), read_float_model(prepared().model)
        prepare(model)
        converted.metadata_props[SCALED_KEY] = text
        repeat_moves(model, converted)
        weights = [value.const_value for value in model.graph.initializers.values()]
        finite = all(np.isfinite(tensor.numpy()).all() for tensor in weights if tensor is not None)
    except Exception as error:
        return judge(error, index, "metadata")
    return _accepted(index, "metadata", "" if finite else "weights that are not finite")


def training_case(folder: Path, rng: np.random.Generator, index: int) -> Outcome:
    """A checkpoint of a training run."""
    path = folder / "checkpoint.pt"
    raw = prepared().training
    if rng.random() < 0.5:
        path.write_bytes(byte_by_byte(raw, raw[::-1], rng))
    else:
        state = change(torch.load(io.BytesIO(raw), weights_only=True), rng)
        try:
            torch.save(state, path)
        except Exception:  # of what PyTorch cannot write
            return Outcome(index, "skipped")
    student, average, optimizer = _training()
    stage("training checkpoint")
    try:
        step = checkpoint.restore(path, Schedule(), student, average, optimizer)
    except Exception as error:
        return judge(error, index, "training checkpoint")
    finite = all(bool(torch.isfinite(tensor).all()) for tensor in student.state_dict().values())
    return _accepted(index, "training checkpoint", "" if finite and 0 <= step <= 1000 else f"step {step}")


def _accepted(index: int, what: str, wrong: str) -> Outcome:
    if wrong:
        return Outcome(index, "accepted", f"{what}: accepted, and beyond its range", wrong)
    return Outcome(index, "ok", what)


def change(value: Any, rng: np.random.Generator) -> Any:
    """Return a value in which one to three entries, at any depth, are others."""
    changed = copy.deepcopy(value)
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        changed = _changed(changed, rng)
    return changed


def _changed(value: Any, rng: np.random.Generator) -> Any:
    inner = isinstance(value, dict | list) and len(value) and rng.random() < 0.75
    if not inner:
        if isinstance(value, torch.Tensor) and rng.random() < 0.7:
            wrong = (
                value.double(),
                value.to(torch.int8),
                value.reshape(-1),
                value * float("nan"),
                value + 1e30,
            )
            return wrong[int(rng.integers(len(wrong)))]
        return copy.deepcopy(_ODD[int(rng.integers(len(_ODD)))])
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[int(rng.integers(len(keys)))]
    kind = rng.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.2 and isinstance(value, dict):
        value[str(rng.choice(["x", "", "group-size", "layers", "a\nb", "é"]))] = value.pop(key)
    elif kind < 0.25 and isinstance(value, list):
        value.append(copy.deepcopy(value[key]))
    else:
        value[key] = _changed(value[key], rng)
    return value


def text_of(value: Any, rng: np.random.Generator, *, is_json: bool) -> bytes:
    """Return a value as a document, whose text is changed at times."""
    try:
        text = json.dumps(value) if is_json else _toml(value)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    data = text.encode("utf-8", errors="surrogatepass")
    kind = rng.random()
    if kind < 0.2:
        data = byte_by_byte(data, b"{\"[\\u0000}]=#'\n,1e999" * 9, rng)
    elif kind < 0.23:
        data = b"[" * 100_000 if is_json else b"a" + b".a" * 50_000 + b" = 1"
    elif kind < 0.25:
        data = b'{"group_size": ' + b"9" * 100_000 + b"}" if is_json else b"group_size = " + b"9" * 100_000
    elif kind < 0.28:
        data = data + data
    return data


def _toml(value: Any) -> str:
    if not isinstance(value, dict):
        return f"x = {_toml_value(value)}"
    return "".join(f"{json.dumps(str(key))} = {_toml_value(entry)}\n" for key, entry in value.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(entry)}" for key, entry in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, float):
        return {"nan": "nan", "inf": "inf", "-inf": "-inf"}.get(str(value), repr(value))
    return json.dumps(value)


if __name__ == "__main__":
    workers.main("mutate_documents", make, 10_000, seconds=30, megabytes=MEGABYTES)
