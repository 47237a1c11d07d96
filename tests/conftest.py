"""Small ONNX models, and what onnxruntime makes of them."""

import logging
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Workers of pytest-xdist share the processor already; read when numpy and torch are loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import settings
from onnx import helper, numpy_helper

from fgq import Session, cli
from fgq.graph.ort import open_session, session_options
from fgq.kernels.products.dispatch import Wish

settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Background jobs of a shell ignore interrupts, nohup lets hangups be ignored, and processes that tests
# start to end them by a signal would inherit that.
for name, handler in (
    ("SIGINT", signal.default_int_handler),
    ("SIGTERM", signal.SIG_DFL),
    ("SIGHUP", signal.SIG_DFL),
):
    if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), handler)

Arrays = dict[str, np.ndarray]
MakeModel = Callable[..., onnx.ModelProto]
Run = Callable[..., list[np.ndarray]]


def _make_model(
    text: str, weights: Arrays | None = None, *, opset: int = 17, ir_version: int = 8, domains: str = ""
) -> onnx.ModelProto:
    """Read a graph, ``(float[N,3] x) => (float y) {y = Relu(x)}``; outputs of any shape, weights by name."""
    imports = f'"" : {opset}' + (f", {domains}" if domains else "")
    model = onnx.parser.parse_model(
        f"<ir_version: {ir_version}, opset_import: [{imports}]> graph_of_test {text}"
    )
    inputs = {value.name for value in model.graph.input}
    for output in model.graph.output:
        if output.name not in inputs:
            output.type.tensor_type.ClearField("shape")
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def _contents(model: onnx.ModelProto | str | Path) -> bytes | str:
    return model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)


def _run(
    model: onnx.ModelProto | str | Path, feeds: Arrays, outputs: list[str] | None = None
) -> list[np.ndarray]:
    """Run a model in onnxruntime: exactly, but for products with a constant on the left, which are float."""
    try:
        results: list[Any] = open_session(_contents(model), "model").run(outputs, feeds)
    except Exception:
        results = _session(model).run(outputs, feeds)
    return results


def _session(
    model: onnx.ModelProto | str | Path, optimized: Path | None = None
) -> onnxruntime.InferenceSession:
    options = session_options(stock=True)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(_contents(model), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    return _make_model


@pytest.fixture(scope="session")
def run() -> Run:
    return _run


@pytest.fixture
def optimized(tmp_path: Path) -> Callable[[onnx.ModelProto], Counter[str]]:
    """Count the operators of a model after onnxruntime has optimized it."""

    def count(model: onnx.ModelProto) -> Counter[str]:
        _session(model, tmp_path / "optimized.onnx")
        return Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    return count


def _with_integers_as_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a converted model with every quantized activation as a further output."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    clips = [node for node in model.graph.node if node.name.endswith("_int4_clipped")]
    quantized = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    clipped = {node.input[0] for node in clips}
    exposed.graph.output.extend(
        helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UINT8, None)
        for node in (*clips, *quantized)
        if node.output[0] not in clipped
    )
    return exposed


@pytest.fixture(scope="session")
def check_integers() -> Callable[..., None]:
    """Compare every integer that passes between layers, and the outputs, with onnxruntime's."""

    def check(
        model: onnx.ModelProto, feeds: Arrays, rtol: float = 0.0, wishes: Iterable[Wish] = Wish
    ) -> None:
        model = _with_integers_as_outputs(model)
        expected = _run(model, feeds)
        for wish in wishes:
            session = Session(model.SerializeToString(), kernels=wish)
            found = session.run(None, feeds)
            for output, ours, theirs in zip(session.get_outputs(), found, expected, strict=True):
                assert ours.dtype == theirs.dtype
                assert ours.shape == theirs.shape
                if ours.dtype == np.float32:
                    atol = rtol * float(np.abs(theirs).max(initial=0.0))
                    np.testing.assert_allclose(ours, theirs, 0, atol, err_msg=f"{wish}: {output.name}")
                else:
                    np.testing.assert_array_equal(ours, theirs, err_msg=f"{wish}: {output.name}")

    return check


class Outcome(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Run the command line in this process, as its entry point does."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = list(logging.getLogger().handlers)

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr("sys.argv", ["fgq", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Outcome(int(ended.value.code or 0), *capsys.readouterr())

    yield call
    for number, handler in signals.items():
        signal.signal(number, handler)
    logging.getLogger().handlers[:] = handlers
