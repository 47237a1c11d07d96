"""Random legal graphs: converted in every form, run by both engines at several sizes, and compared.

::

    python tests/fuzz/graphs.py --seed 0 --count 10000 --minutes 60
    python tests/fuzz/graphs.py --seed 0 --only 17            # one case, in this process

A case follows from its seed and index alone. Models that onnx.checker or onnxruntime refuse are skipped.
"""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import workers  # first: it sets the number of threads
from comparison import Reference, compare, distance
from drawing import Drawn, Feeds, draw, session, usable
from workers import Case, Outcome, kind_of, plain, stage

import fgq
from fgq.conversion import calibrated as calibration_stage
from fgq.converters.passes import prepare
from fgq.converters.reader import read_float_model
from fgq.errors import FgqError
from fgq.kernels import warmup  # noqa: F401  everything is loaded before workers are forked
from fgq.quantization.mmse import StreamingHistogram, choose_quantizer
from fgq.quantization.scheme import ActivationScheme, Quantizer

AFTER_PASSES = 3e-3
"""Of the largest result: what another order of float operations may change, behind a normalization too."""

SATURATES = "vnni" not in Path("/proc/cpuinfo").read_text()
"""Whether onnxruntime's sums of products are exact for small weights alone, on this machine."""


def make(seed: int) -> Case:
    """Return the case of a seed: its index gives everything else."""

    def case(index: int) -> Outcome:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run_case(seed, index)

    return case


def run_case(seed: int, index: int) -> Outcome:
    """Draw a model, convert it in one way, and compare the engines."""
    rng = np.random.default_rng([seed, index])
    stage("drawing")
    drawn = draw(rng)
    stage("float model")
    valid = valid_feeds(drawn)
    if not valid:
        return Outcome(index, "skipped", "not a model that onnxruntime runs")
    options = draw_options(rng)
    how = describe(drawn, options)
    if rng.random() < 0.25:
        stage("passes")
        try:
            apart = changed_by_passes(drawn, valid)
        except FgqError as error:
            return Outcome(index, "refused", plain(str(error)), f"{error} | {how}")
        except Exception as error:
            return Outcome(
                index, "exception", f"passes: {kind_of(error)}", f"{traceback.format_exc()[-2500:]}{how}"
            )
        if apart:
            return Outcome(index, "difference", "the passes", f"{apart} | {how}")
    stage("convert")
    try:
        converted, _ = convert(drawn, options, exact_ranges=bool(rng.random() < 0.3))
    except FgqError as error:
        # of its own faults fgq says so
        verdict = "exception" if "at fault, not the model" in str(error) else "refused"
        return Outcome(index, verdict, plain(str(error)), f"{error} | {how}")
    except Exception as error:
        return Outcome(
            index, "exception", f"convert: {kind_of(error)}", f"{traceback.format_exc()[-2500:]}{how}"
        )
    return run_converted(rng, index, converted, valid, how)


def run_converted(
    rng: np.random.Generator,
    index: int,
    converted: onnx.ModelProto,
    valid: list[Feeds],
    how: str,
) -> Outcome:
    """Compare the engines on a converted model."""
    data = converted.SerializeToString()
    stage("onnxruntime load")
    try:
        theirs = Reference(data)
    except Exception as error:
        return Outcome(index, "exception", f"onnxruntime refuses: {plain(str(error))}", f"{error} | {how}")
    steps = ""
    for wish in draw_sessions(rng):
        stage(f"Session {wish}")
        try:
            ours = fgq.Session(data, threads=1, **wish)
        except FgqError as error:
            if "fallback=True" in str(error):
                continue
            return Outcome(
                index, "exception", f"Session refuses: {plain(str(error))}", f"{error} | {wish} {how}"
            )
        except Exception as error:
            return Outcome(
                index,
                "exception",
                f"Session: {kind_of(error)}",
                f"{traceback.format_exc()[-2500:]}{wish} {how}",
            )
        for feeds in valid:
            sizes = {name: array.shape for name, array in feeds.items()}
            stage("onnxruntime run")
            try:
                wanted = theirs.run(feeds)
            except Exception as error:
                if any(0 in size for size in sizes.values()) or disagrees(converted, sizes):
                    continue
                return Outcome(
                    index, "exception", f"onnxruntime run: {plain(str(error))}", f"{error} | {sizes} {how}"
                )
            stage(f"run {wish}")
            kept = {name: array.copy() for name, array in feeds.items()}
            try:
                first, second = ours.run(None, feeds), ours.run(None, feeds)
            except Exception as error:
                if isinstance(error, FgqError) and wish.get("fallback") is False:
                    continue  # NumPy's poolings have no windows that are larger than the image
                kind = plain(str(error)) if isinstance(error, FgqError) else kind_of(error)
                return Outcome(
                    index,
                    "exception",
                    f"run: {kind}",
                    f"{traceback.format_exc()[-2500:]}{sizes} {wish} {how}",
                )
            where = f"{sizes} {wish} {how}"
            if any(not np.array_equal(kept[name], array) for name, array in feeds.items()):
                return Outcome(index, "difference", "an input is written to", where)
            if not all(
                np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
                for a, b in zip(first, second, strict=True)
            ):
                return Outcome(index, "difference", "the second run", where)
            if distance(first, wanted) and disagrees(converted, sizes):
                # onnxruntime joins operators where axes of one name stand, as if they were of one size
                try:
                    wanted = session(data, optimized=False).run(None, feeds)
                except Exception:  # nor does it run without joining them
                    continue
            elif distance(first, wanted):
                wanted = theirs.nearer(feeds, first)
            verdict = compare(converted, feeds, first, wanted)
            if verdict.name == "step":
                steps = verdict.where
            elif verdict.name != "equal":
                return Outcome(
                    index, "difference", f"{verdict.name}: {verdict.where}", f"{verdict.detail} | {where}"
                )
    return Outcome(index, "ok", f"one step behind {steps}" if steps else "")


def valid_feeds(drawn: Drawn) -> list[Feeds]:
    """Return the feeds that onnxruntime runs the float model on; none where it is no legal model."""
    try:
        onnx.checker.check_model(drawn.model)
        float_session = session(drawn.model.SerializeToString())
        for feeds in (drawn.feeds[0], *drawn.samples):
            if not all(map(usable, float_session.run(None, feeds))):
                return []
    except Exception:  # of several packages
        return []
    valid = [drawn.feeds[0]]
    for feeds in drawn.feeds[1:]:
        try:
            results = float_session.run(None, feeds)
            if joins_nothing(drawn.model, feeds):
                continue
        except Exception:
            continue
        if all(isinstance(array, np.ndarray) and np.isfinite(array).all() for array in results):
            valid.append(feeds)
    return valid


def joins_nothing(model: onnx.ModelProto, feeds: Feeds) -> bool:
    """Tell whether a Concat joins arrays of nothing to others of other sizes.

    ONNX forbids it; onnxruntime takes it, and gives memory that nobody has written.
    """
    concats = [node for node in model.graph.node if node.op_type == "Concat" and len(node.input) > 1]
    if not concats or all(array.size for array in feeds.values()):
        return False
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    names = dict.fromkeys(name for node in concats for name in node.input)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    parts = dict(zip(names, session(exposed.SerializeToString()).run(None, feeds), strict=True))
    for node in concats:
        arrays = [parts[name] for name in node.input]
        axis = onnx.helper.get_node_attr_value(node, "axis")
        others = {tuple(np.delete(array.shape, axis)) for array in arrays}
        if len(others) > 1:
            return True
    return False


def disagrees(model: onnx.ModelProto, sizes: dict[str, tuple[int, ...]]) -> bool:
    """Tell whether axes of one name have several sizes, for which onnxruntime's plan of memory may fail."""
    known: dict[str, int] = {}
    for value in model.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
            if dim.dim_param and known.setdefault(dim.dim_param, size) != size:
                return True
    return False


def draw_options(rng: np.random.Generator) -> dict[str, Any]:
    """Return options of a conversion."""
    modes = [*["int8"] * 6, "int4", "int4", "int8-dynamic", "int8-dynamic-token", "none"]
    options: dict[str, Any] = {
        "activations": str(rng.choice(modes)),
        "form": str(rng.choice(["packed", "packed", "int8", "inlined"])),
        "group_size": int(rng.choice([1, 2, 3, 4, 4, 8, 16, 64])),
        "first_last_int8": bool(rng.random() < 0.4),
        "x86_without_vnni": bool(rng.random() < 0.8) or SATURATES,
        "group_size_fallback": str(rng.choice(["ragged", "ragged", "ragged", "smaller"])),
    }
    if options["activations"] in ("none", "int8-dynamic", "int8-dynamic-token"):
        options["first_last_int8"] = False
    kind = rng.random()
    if kind < 0.14:
        options |= {"recipe": "omse", "weights": "int8"}
    elif kind < 0.19:
        options |= {
            "recipe": "omse",
            "granularity": str(rng.choice(["layer", "filter", "kernel", "group"])),
        }
    elif kind < 0.25:
        options |= {"recipe": "calibrated"}
    else:
        options |= {"recipe": "fgq"}
        if rng.random() < 0.1:
            options["weights"] = "tied"
    if options["activations"] == "int4" and rng.random() < 0.5:
        options["smooth"] = bool(rng.random() < 0.3)
    return options


def draw_sessions(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return how to run a model: as anybody does, and in one other way."""
    other = {
        "kernels": str(rng.choice(["auto", "multiplication-free", "dot", "reference"])),
        "memory": str(rng.choice(["fast", "compact"])),
    }
    kind = rng.random()
    if kind < 0.2:
        return [{}, {"fallback": False}]
    return [{}, other] if kind < 0.7 else [{}]


def convert(drawn: Drawn, options: dict[str, Any], *, exact_ranges: bool) -> Any:
    """Convert; where `exact_ranges` is False, ranges are those of the data, which are found at once."""
    calibrated = options["activations"] in ("int8", "int4") or options["recipe"] != "fgq"
    calibration = iter(drawn.samples) if calibrated else None
    kept = calibration_stage.choose_quantizer
    if not exact_ranges:
        calibration_stage.choose_quantizer = _widest  # type: ignore[assignment]
    try:
        return fgq.convert(drawn.model, calibration=calibration, **options)
    finally:
        calibration_stage.choose_quantizer = kept


def _widest(histogram: StreamingHistogram, scheme: ActivationScheme) -> Quantizer:
    """Choose the quantizer of all that was seen, without a search."""
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if histogram.count == 0 or not high - low > 1e-30:
        return choose_quantizer(histogram, scheme)
    most = (1 << scheme.bits) - 1
    scale = float(np.float32((high - low) / most))
    zero_point = int(np.clip(round(-low / scale), 0, most)) if scale else 0
    return Quantizer(scale=scale, zero_point=zero_point, bits=scheme.bits)


def changed_by_passes(drawn: Drawn, valid: list[Feeds]) -> str:
    """Say how the float graph differs from the one that came in once it has gone through all passes."""
    model = read_float_model(drawn.model)
    prepare(model)
    prepared = session(ir.to_proto(model).SerializeToString())
    original = session(drawn.model.SerializeToString())
    for feeds in valid:
        if disagrees(drawn.model, {name: array.shape for name, array in feeds.items()}):
            continue
        wanted = original.run(None, feeds)
        if apart := distance(prepared.run(None, feeds), wanted, AFTER_PASSES):
            return f"{apart} for { ({name: array.shape for name, array in feeds.items()}) }"
    return ""


def describe(drawn: Drawn, options: dict[str, Any]) -> str:
    """Return a case in one line."""
    operators = " ".join(node.op_type for node in drawn.model.graph.node)
    given = " ".join(f"{name}={value}" for name, value in options.items())
    return f"opset {drawn.model.opset_import[0].version}: {operators}; {given}"


if __name__ == "__main__":
    workers.main("graphs", make, 10_000, seconds=120)
