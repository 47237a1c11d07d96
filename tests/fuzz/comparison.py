"""Two engines on one file: equal, or apart by what docs/runtime.md states and no more.

Where outputs differ, every step is looked at by itself: the integers that fgq found are given to onnxruntime
as inputs, in a model cut at each quantizer, and what onnxruntime makes of them is at most one step from what
fgq made of them next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from drawing import Array, Feeds, session
from moved import differences_are_moved
from onnx import TensorProto, helper

import fgq
from fgq.graph.ort import open_session

TOLERANCE = 3e-5
"""Of the largest result: what the order of sums in float32 may change."""

LEAST = 1e-7
"""Results below this are what is left of larger ones: differences of them are those of rounding."""

FAR_TOLERANCE = 3e-3
"""The same behind many float operators: differences of near values, normalizations, divisions."""


class Verdict(NamedTuple):
    """``equal``, ``step`` (one step where docs/runtime.md says so) or a fault, and where it was seen.

    ``fusion`` is a fault of onnxruntime's optimizations: without them it agrees with fgq.
    """

    name: str
    where: str = ""
    detail: str = ""


class Reference:
    """A model in onnxruntime, whose integers may saturate on x86 without VNNI, in two ways of adding.

    The way that is exact there (`fgq.graph.ort`) is not to be had for every model, and an
    ``InferenceSession`` without options has the other; so results are right that agree with either.

    Parameters
    ----------
    model : onnx.ModelProto or bytes
    """

    def __init__(self, model: onnx.ModelProto | bytes) -> None:
        self._model = model if isinstance(model, bytes) else model.SerializeToString()
        self._plain = session(self._model)
        self._precise: Any = None

    def run(self, feeds: Feeds) -> list[Array]:
        """Return the outputs, as onnxruntime computes them by default."""
        found: list[Array] = self._plain.run(None, feeds)
        return found

    def run_precisely(self, feeds: Feeds) -> list[Array] | None:
        """Return the outputs by exact sums, or None where that cannot be."""
        try:
            if self._precise is None:
                self._precise = open_session(self._model, "model", threads=1)
            found: list[Array] = self._precise.run(None, feeds)
        except Exception:  # onnxruntime's exceptions share no other base
            return None
        return found

    def nearer(self, feeds: Feeds, ours: Sequence[Array], tolerance: float = TOLERANCE) -> list[Array]:
        """Return the outputs that agree with `ours`, if one way gives such."""
        found = self.run(feeds)
        if distance(ours, found, tolerance):
            precise = self.run_precisely(feeds)
            if precise is not None and not distance(ours, precise, tolerance):
                return precise
        return found


def distance(ours: Sequence[Any], theirs: Sequence[Any], tolerance: float = TOLERANCE) -> str:
    """Say how results differ in kind or size; nothing where they agree."""
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if not isinstance(other, np.ndarray):
            continue
        if not isinstance(one, np.ndarray) or one.dtype != other.dtype:
            return (
                f"dtype of output {index}: {getattr(one, 'dtype', type(one))}, onnxruntime has {other.dtype}"
            )
        if one.shape != other.shape:
            return f"shape of output {index}: {one.shape}, onnxruntime has {other.shape}"
        if other.dtype.kind != "f":
            if not np.array_equal(one, other):
                return f"output {index}: integers differ"
            continue
        with np.errstate(all="ignore"):
            same = (one == other) | (np.isnan(one) & np.isnan(other))
            finite = np.isfinite(other)
            largest = float(np.abs(other[finite]).max(initial=0.0))
            apart = np.abs(one.astype(np.float64) - other)
            bad = ~same & ~(apart <= tolerance * largest + LEAST)
        if bad.any():
            most = float(np.nanmax(np.where(bad, apart, 0))) if np.isfinite(apart[bad]).any() else np.inf
            return f"output {index} {one.shape}: {most / largest if largest else most:.3g} of the largest"
    return ""


def compare(model: onnx.ModelProto, feeds: Feeds, ours: Sequence[Array], theirs: Sequence[Array]) -> Verdict:
    """Judge what two engines made of the same feeds.

    Parameters
    ----------
    model : onnx.ModelProto
        The converted model.
    feeds : dict of str to ndarray
    ours, theirs : sequence of ndarray
        Of the model's outputs, in order.
    """
    if not (apart := distance(ours, theirs)):
        return Verdict("equal")
    if apart.startswith(("dtype", "shape")):
        return Verdict("form", apart.split(" of")[0], apart)
    names = cuts(model)
    if not names:
        return Verdict("difference", "no quantizer", apart)
    exposed = expose(model, names)
    inner = fgq.Session(exposed.SerializeToString(), threads=1).run(None, feeds)
    count = len(model.graph.output)
    if changed := distance(inner[:count], ours):
        theirs_exposed = Reference(exposed).run(feeds)
        if distance(theirs_exposed[:count], theirs):
            return Verdict("difference", "onnxruntime differs from itself", f"{apart}; exposed: {changed}")
    values = dict(zip(names, inner[count:], strict=True))
    cut = cut_model(exposed, names)
    given = dict(feeds) | {f"{name}__in": array for name, array in values.items()}
    reference = Reference(cut)
    verdict = judge_steps(model, cut, inner, reference.run(given), apart)
    if verdict.name == "difference" and (precise := reference.run_precisely(given)) is not None:
        again = judge_steps(model, cut, inner, precise, apart)
        verdict = verdict if again.name == "difference" else again
    if verdict.name == "difference":
        plain = session(cut.SerializeToString(), optimized=False).run(None, given)
        if judge_steps(model, cut, inner, plain, apart).name in ("step", "inexplicable"):
            close = [not distance([one], [other]) for one, other in zip(ours, theirs, strict=True)]
            if differences_are_moved(model, feeds, ours, theirs, close):
                return Verdict("step", f"onnxruntime's fusions: {verdict.where}", apart)
            return Verdict("fusion", verdict.where, f"onnxruntime without fusions agrees; {verdict.detail}")
    if verdict.name == "inexplicable" and not distance(ours, theirs, FAR_TOLERANCE):
        return Verdict("equal")
    if verdict.name == "step" and changed:
        return Verdict("difference", "unless inner values are outputs", f"{apart}; exposed: {changed}")
    return verdict


def judge_steps(
    model: onnx.ModelProto, cut: onnx.ModelProto, inner: Sequence[Array], again: Sequence[Array], apart: str
) -> Verdict:
    """Judge what each step made of the integers before it."""
    found = []
    for output, one, other in zip(cut.graph.output, inner, again, strict=True):
        if one.shape != other.shape:
            return Verdict("difference", f"shape behind {chain_of(model, output.name)}", apart)
        if one.dtype.kind in "iu":
            steps = int(np.abs(one.astype(np.int64) - other).max(initial=0))
            if steps > 1:
                return Verdict(
                    "difference", chain_of(model, output.name), f"{apart}; {output.name}: {steps} steps"
                )
            if steps:
                found.append(chain_of(model, output.name))
        elif far := distance([one], [other], _float_tolerance(model, output.name)):
            return Verdict("difference", chain_of(model, output.name), f"{apart}; {output.name}: {far}")
    if not found:
        return Verdict("inexplicable", "each step is equal", apart)
    return Verdict("step", "; ".join(sorted(set(found))), apart)


def _float_tolerance(model: onnx.ModelProto, name: str) -> float:
    """Return what float operators behind the last quantizer may make of the rounding of a sum."""
    steady = {
        "Conv",
        "MatMul",
        "Gemm",
        "MatMulInteger",
        "MultiplyTokens",
        "Cast",
        "Mul",
        "Add",
        "Relu",
        "QuantizeTokens",
    }
    chain = chain_of(model, name, most=99).split(">")
    layers = sum(op in ("Conv", "MatMul", "Gemm", "MatMulInteger", "MultiplyTokens") for op in chain)
    return 1e-4 if set(chain) <= steady and layers == 1 else FAR_TOLERANCE


def cuts(model: onnx.ModelProto) -> list[str]:
    """Return the quantized values of a converted model, behind their clips, in graph order."""
    outputs = {value.name for value in model.graph.output}
    clipped = {node.input[0] for node in model.graph.node if node.name.endswith("_int4_clipped")}
    names = []
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "QuantizeTokens") or (
            node.name.endswith("_int4_clipped")
        ):
            names += [name for name in node.output if name and name not in clipped | outputs]
    return names


def expose(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a model with inner values as further outputs."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    types = value_types(model)
    exposed.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in names)
    return exposed


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the types of what quantizers make."""
    types = {}
    for node in model.graph.node:
        if node.op_type in ("DynamicQuantizeLinear", "QuantizeTokens"):
            types |= dict(
                zip(node.output, (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8), strict=False)
            )
        else:
            types |= dict.fromkeys(node.output, TensorProto.UINT8)
    return types


def cut_model(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a model that reads inner values as inputs, ``<name>__in``, wherever it read them."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    known, types = set(names), value_types(model)

    def rename(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = [f"{name}__in" if name in known else name for name in node.input]
            for attribute in node.attribute:
                rename(attribute.g)

    rename(cut.graph)
    cut.graph.input.extend(helper.make_tensor_value_info(f"{name}__in", types[name], None) for name in names)
    return cut


def chain_of(model: onnx.ModelProto, name: str, most: int = 6) -> str:
    """Return the operators from the quantizers before a value to the one that makes it."""
    makers = {output: node for node in model.graph.node for output in node.output}
    seen: set[str] = set()
    found: list[str] = []

    def visit(value: str) -> None:
        node = makers.get(value)
        if node is None or value in seen:
            return
        seen.add(value)
        if node.op_type in ("DequantizeLinear", "Unpack", "Constant"):
            return
        for read in node.input:
            visit(read)
        found.append(node.op_type)

    visit(name)
    return ">".join(found[-most:])
