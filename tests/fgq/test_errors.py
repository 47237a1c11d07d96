"""What nobody expected of an input is one error, with its cause behind it; messages are printable."""

import numpy as np
import pytest

from fgq import Session, convert, errors
from fgq.errors import DataError, ModelError, printable, refusing
from fgq.runtime import session as session_module


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("kind", [ModelError, DataError])
@pytest.mark.parametrize(
    ("error", "line"),
    [
        (KeyError("axis"), "m.onnx: found something that fgq cannot use (KeyError: 'axis')"),
        (ValueError("one\ntwo"), "m.onnx: found something that fgq cannot use (ValueError: one)"),
        (AssertionError(), "m.onnx: found something that fgq cannot use (AssertionError: AssertionError)"),
        (MemoryError(), "m.onnx: found too little memory (MemoryError), wanted more for it"),
    ],
)
def test_every_exception_is_one_error(kind, error, line):
    with pytest.raises(kind) as caught, refusing("m.onnx", kind):
        raise error
    assert str(caught.value) == line
    assert caught.value.__cause__ is error
    assert caught.value.__cause__.__traceback__ is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), errors.ConfigError("x")])
def test_what_is_no_fault_of_the_input_passes(error):
    with pytest.raises(type(error)) as caught, refusing("m.onnx"):
        raise error
    assert caught.value is error


@pytest.fixture
def model(make_model):
    weights = {"w": np.eye(8, dtype=np.float32)}
    return make_model("(float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }", weights)


def test_nothing_else_leaves_a_session(model, monkeypatch):
    session = Session(model.SerializeToString(), allow_float=True)
    monkeypatch.setattr(session._programs, "run", failing(IndexError("out of range")))
    with pytest.raises(DataError, match=r"inputs: found something .* \(IndexError: out of range\)"):
        session.run(None, {"x": np.zeros((1, 8), np.float32)})
    monkeypatch.setattr(session_module, "find_steps", failing(RecursionError("too deep")))
    with pytest.raises(ModelError, match=r"bytes: found something .* \(RecursionError: too deep\)"):
        Session(model.SerializeToString(), allow_float=True)


def test_nothing_else_leaves_a_conversion(model, monkeypatch):
    monkeypatch.setattr("fgq.conversion.prepared.find_layers", failing(ZeroDivisionError("by zero")))
    with pytest.raises(ModelError, match=r"model: found something .* \(ZeroDivisionError: by zero\)"):
        convert(model, activations="none")


def test_nothing_else_leaves_a_command(command, monkeypatch):
    monkeypatch.setattr("fgq.converters.survey.inspect", failing(TypeError("of another type")))
    outcome = command("inspect", "m.onnx")
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert line == "fgq: error: inspect: found something that fgq cannot use (TypeError: of another type)"


@pytest.mark.parametrize("kind", [errors.FgqError, ModelError])
def test_a_message_is_one_line_whatever_names_a_file_holds(kind):
    name = "one\ntwo\x0b\x1b[31m\u202e"
    assert str(kind(f"{name}: found a name")) == "one\\ntwo\\x0b\\x1b[31m\\u202e: found a name"
    again = kind(f"m.onnx: {kind(name)}")
    assert str(again) == "m.onnx: one\\ntwo\\x0b\\x1b[31m\\u202e"


def test_the_names_of_a_model_stay_in_one_line(model):
    (product,) = model.graph.node
    product.op_type, product.domain = "Mat\nMul", "other\x0b"
    with pytest.raises(ModelError) as caught:
        Session(model.SerializeToString(), allow_float=True, fallback=False)
    assert str(caught.value).startswith(
        "Mat\\nMul: found the operator Mat\\nMul, which runs in onnxruntime only"
    )


@pytest.mark.parametrize("text", ["", "layer1.0/conv", "[red]:car:[/]\\", "größe α 層 🙂", "a  b"])
def test_letters_stay(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m\x07", "\\x1b[31m\\x07"),
        ("\r\n\t\x00\x7f", "\\r\\n\\t\\x00\\x7f"),
        ("\x9b5m\x85", "\\x9b5m\\x85"),
        ("\u202egnp.exe\u2028\u200b", "\\u202egnp.exe\\u2028\\u200b"),
        ("\udcff\U000e0001", "\\udcff\\U000e0001"),
    ],
)
def test_all_else_is_written_out(text, shown):
    assert printable(text) == shown
