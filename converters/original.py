"""The model that came in, which a conversion is judged by, and what our passes make of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from fgq.converters.passes import ExplicitZeroPoints, passes, prepare
from fgq.converters.reader import Source, read_float_model
from fgq.converters.self_check import Feed, onnxruntime_session
from fgq.errors import ModelError, SizeError, first_line
from fgq.format import onnx_file

Outputs = Mapping[str, Any]
"""What a model gives, by the names of its outputs."""

_PROTO_LIMIT = 1_900_000_000
"""Larger models reach onnxruntime in files; protobuf ends at 2**31 bytes."""

_ROUNDING = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}
_FLOAT_ROUNDING = 2.0**-24
_STEP = 2.0**-8
"""What one operation rounds away, in units of its result; a quantizer half a step, in units of its range."""


class Opened(NamedTuple):
    """A session of the model that came in.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
    note : str
        Why this is not the file itself but what fgq reads in it; empty where it is the file.
    """

    session: onnxruntime.InferenceSession
    note: str


@dataclass(frozen=True, slots=True)
class Original:
    """The model that came in, before any pass.

    Parameters
    ----------
    source : path-like, onnx.ModelProto or onnx_ir.Model
        As `fgq.converters.reader.read_float_model` has read it.
    bare : bool
        Whether it lacks zero points without which onnxruntime cannot run it exactly
        (`fgq.converters.passes.ExplicitZeroPoints`); then it is opened with them, which changes no value.
    """

    source: Source
    bare: bool = False

    def open(self) -> Opened:
        """Open the model in onnxruntime: a file by its path, so that its weights are in memory once.

        A model that onnxruntime refuses as it is, as it refuses opsets that are newer than itself, is opened
        as fgq reads it, still before any pass.

        Raises
        ------
        ModelError
            If onnxruntime refuses that too.
        """
        try:
            return Opened(self._given(), "")
        except ModelError as error:
            refusal = error
        try:
            session = onnxruntime_session(read_float_model(self.source), "model")
        except ModelError:
            raise refusal from None
        return Opened(session, f"{refusal}; it was judged by what fgq reads in it")

    def refuses(self, feed: Feed) -> str:
        """Say why onnxruntime cannot run the model operator by operator; nothing where it can.

        Where it joins operators it may take sizes that the model forbids: a MatMul with an Add behind it
        becomes a Gemm of rows as wide as the weights, however the values were divided into rows.
        """
        try:
            run(onnxruntime_session(read_float_model(self.source), "model", optimized=False), feed)
        except Exception as error:  # onnxruntime's exceptions share no other base
            return first_line(error)
        return ""

    def _given(self) -> onnxruntime.InferenceSession:
        if self.bare:
            model = read_float_model(self.source)
            ExplicitZeroPoints()(model)
            return onnxruntime_session(model, "model")
        if isinstance(self.source, ir.Model):
            return onnxruntime_session(self.source.clone(), "model")
        if isinstance(self.source, onnx.ModelProto):
            if self.source.ByteSize() > _PROTO_LIMIT:
                return onnxruntime_session(onnx_file.from_proto(self.source), "model")
            return onnxruntime_session(self.source.SerializeToString(), "model")
        return onnxruntime_session(Path(self.source), "model")


def prepare_judged(model: ir.Model, original: Original) -> None:
    """Do what `fgq.converters.passes.prepare` does, and say whose fault it is where that fails.

    Parameters
    ----------
    model : onnx_ir.Model
        As `read_float_model` gives the original.
    original : Original

    Raises
    ------
    ModelError
        If the passes fail.
    """
    try:
        prepare(model)
    except SizeError:  # which onnxruntime might die of
        raise
    except ModelError as error:
        try:
            original.open()
        except ModelError:
            raise error from None
        raise ModelError(
            f"prepared graph: fgq is at fault, not the model, which onnxruntime loads ({error})"
        ) from error


def run(session: onnxruntime.InferenceSession, feed: Feed) -> dict[str, Any]:
    """Return what a session gives, by the names of its outputs."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, dict(feed)), strict=True))


def check_prepared(original: Original, model: ir.Model, feed: Feed, exact: Outputs | None) -> Iterator[str]:
    """Run a prepared model, and yield how it differs from the original beyond rounding, one line each output.

    Parameters
    ----------
    original : Original
    model : onnx_ir.Model
        What `fgq.converters.passes.prepare` made of it.
    feed : mapping of str to ndarray
    exact : mapping of str to ndarray, or None
        What the original gives; None where it does not run on `feed`, and then nothing is compared.

    Raises
    ------
    ModelError
        If the original runs and the prepared model does not, which is fgq's fault.
    """
    allowed = rounding(model)
    try:
        session = onnxruntime_session(model, "prepared graph")
        if exact is None:
            return
        found = run(session, feed)
    except Exception as error:  # onnxruntime's exceptions share no other base
        whose = "" if exact is None else f"; {_fault(original, feed, exact, allowed)}"
        what = (
            str(error)
            if isinstance(error, ModelError)
            else (f"prepared graph: onnxruntime cannot run it ({first_line(error)})")
        )
        raise ModelError(f"{what}{whose}") from None
    del session
    different = list(differences(exact, found, allowed))
    if not different:
        return
    session = original.open().session
    run(session, feed)
    random = {name for name, _ in differences(exact, run(session, feed), allowed)}
    for name, how in different:
        if name in random:
            yield f"output {name}: the model gives other values each time, so that nothing can be compared"
        else:
            yield (
                f"output {name}: the prepared float graph differs from the model that was given {how}, where "
                f"rounding explains {allowed:.1e}; {_fault(original, feed, exact, allowed)}"
            )


def rounding(model: ir.Model) -> float:
    """Return the relative difference that reordered rounding explains: sqrt(u).

    An operation rounds to u of its result, 2^-24 of float32. Passes change in which order that happens; a
    model that makes more than sqrt(u) of it has lost half of its digits, whatever runs it. The least precise
    type in the model counts, and a quantizer of its own, where rounding turns into a step.
    """
    values = (value for graph in model.graphs() for node in graph for value in (*node.inputs, *node.outputs))
    types = {value.dtype for value in values if value is not None}
    units = [_ROUNDING.get(dtype, _FLOAT_ROUNDING) for dtype in types if dtype is not None]
    operators = {node.op_type for node in model.graph.all_nodes()}
    if operators & {"QuantizeLinear", "DynamicQuantizeLinear"}:
        units.append(_STEP)
    return float(np.sqrt(max(units, default=_FLOAT_ROUNDING)))


def differences(exact: Outputs, found: Outputs, allowed: float) -> Iterator[tuple[str, str]]:
    """Yield the outputs that differ beyond rounding, and how.

    Parameters
    ----------
    exact, found : mapping of str to ndarray
    allowed : float
        The root of the squared error that is allowed, in units of the output's norm (`rounding`); what is
        no float must be equal.
    """
    for name, value in exact.items():
        how = "in that it is missing" if name not in found else _difference(value, found[name], allowed)
        if how:
            yield name, how


def _difference(exact: Any, found: Any, allowed: float) -> str:
    if isinstance(exact, list) and isinstance(found, list) and len(exact) == len(found):
        each = (_difference(*pair, allowed) for pair in zip(exact, found, strict=True))
        return next(filter(None, each), "")
    if not isinstance(exact, np.ndarray) or not isinstance(found, np.ndarray):
        return "" if type(exact) is type(found) else "in its type"
    if exact.shape != found.shape or exact.dtype != found.dtype:
        before, after = (f"{array.dtype}{list(array.shape)}" for array in (exact, found))
        return f"in its shape or type ({before} became {after})"
    if exact.dtype.kind != "f":
        unequal = int(np.count_nonzero(exact != found))
        return f"in {unequal} of {exact.size} values" if unequal else ""
    a, b = exact.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.isfinite(b[finite]).all() or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "in where it is infinite or NaN"
    size, error = (float(np.linalg.norm(values)) for values in (a[finite], a[finite] - b[finite]))
    return "" if error <= allowed * (size or 1.0) else f"by {error / (size or 1.0):.1e} of its norm"


def _fault(original: Original, feed: Feed, exact: Outputs, allowed: float) -> str:
    """Say since which pass the graph no longer gives what the model gives, by doing them one at a time."""
    model = read_float_model(original.source)
    if original.bare:
        ExplicitZeroPoints()(model)
    culprit = "" if _agrees(model, feed, exact, allowed) else "the reader"
    for each in passes():
        each(model)
        if _agrees(model, feed, exact, allowed):
            culprit = ""
        else:
            culprit = culprit or f"the pass {type(each).__name__}"
    return f"{culprit or 'a pass'} of fgq is at fault, not the model"


def _agrees(model: ir.Model, feed: Feed, exact: Outputs, allowed: float) -> bool:
    try:
        found = run(onnxruntime_session(model, "graph"), feed)
    except Exception:  # onnxruntime's exceptions share no other base
        return False
    return not any(differences(exact, found, allowed))
