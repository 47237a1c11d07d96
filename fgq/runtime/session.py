"""`Session`: run a converted model, in the shape of onnxruntime's InferenceSession."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NoReturn, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx_ir.passes import common

from fgq.errors import ConfigError, DataError, FgqError, ModelError, refusing, unexpected
from fgq.format import external, onnx_file
from fgq.format.functions import recognise
from fgq.format.geometry import check_geometry
from fgq.format.shapes import InferShapes
from fgq.kernels.products.dispatch import Memory, Wish
from fgq.kernels.threads import default_threads
from fgq.runtime.feeds import NodeArg, check_feeds
from fgq.runtime.network import build
from fgq.runtime.plan import plan
from fgq.runtime.program import Programs
from fgq.runtime.recognise import find_steps, float_products
from fgq.runtime.segments import NumpyStep, SegmentStep
from fgq.runtime.steps.registry import Options
from fgq.runtime.steps.step import Runnable, Step

Feeds = Mapping[str, Any]

T = TypeVar("T", Wish, Memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """One step of a session: what runs it, and what it runs.

    Parameters
    ----------
    name : str
        The layer, or the outputs of a segment.
    kernel : str
        The kernel, or ``onnxruntime``.
    tier : str
        The instruction set, empty where that is left to others.
    nodes : int
        How many of the model's nodes onnxruntime, or NumPy, runs in it; 0 for a step of fgq's kernels.
    weight_bytes : int
        Memory that its weights take in the forms that have been needed so far.
    """

    name: str
    kernel: str
    tier: str = ""
    nodes: int = 0
    weight_bytes: int = 0


MOST_THREADS = 1024
"""Each is one of the system's, and waits for work in a stack of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """How long one step takes.

    Parameters
    ----------
    step : StepInfo
    seconds : float
        Median.
    output_bytes : int
        What it writes.
    """

    step: StepInfo
    seconds: float
    output_bytes: int


class Session:
    """A converted model, its quantized layers run by fgq's kernels and all else by onnxruntime.

    The integers are those of onnxruntime on the same file. Several threads may call `run` at once. An input
    that has a default value in the model is a constant.

    Parameters
    ----------
    path_or_bytes : path-like, bytes or onnx.ModelProto
        A model file, its contents, or the model.
    kernels : str or Wish
        ``auto``, ``multiplication-free`` (ternary layers by additions; 8-bit layers as in ``auto``, see
        `steps`), ``dot`` or ``reference``.
    memory : str or Memory
        ``fast`` unpacks the weights of dot-product kernels when they are first needed, ``compact`` keeps them
        packed and decodes them as it goes, ``auto`` takes what is faster for each layer.
    threads : int, optional
        Threads of the kernels and of each onnxruntime part. If not given, kernels use all processors
        (``FGQ_NUM_THREADS``), onnxruntime's parts one where the model has integer layers, as the parts
        between them are many and small, and its own choice where it runs the model whole.
    allow_float : bool
        Whether to run a float model, whole, in onnxruntime. It is refused otherwise, since nothing in it
        would be faster or smaller.
    fallback : bool
        Whether onnxruntime may run what fgq's kernels do not. Otherwise NumPy does, slowly, and a model that
        needs more than `fgq.runtime.operators` has is refused.

    Raises
    ------
    ModelError
        If the model cannot be read or planned, or is a float model.
    ConfigError
        If `kernels`, `memory` or `threads` is not what it may be.

    Examples
    --------
    >>> session = Session("model.onnx")                              # doctest: +SKIP
    >>> logits, = session.run(["logits"], {"image": image})          # doctest: +SKIP
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes | onnx.ModelProto,
        *,
        kernels: str | Wish = Wish.AUTO,
        memory: str | Memory = Memory.AUTO,
        threads: int | None = None,
        allow_float: bool = False,
        fallback: bool = True,
    ) -> None:
        options = Options(_named(Wish, "kernels", kernels), _named(Memory, "memory", memory))
        if threads is not None and not (
            isinstance(threads, int | np.integer) and 0 < threads <= MOST_THREADS
        ):
            raise ConfigError(f"threads: found {threads!r}, wanted a whole number from 1 to {MOST_THREADS}")
        if isinstance(path_or_bytes, onnx.ModelProto):
            path_or_bytes = path_or_bytes.SerializeToString()
        if not isinstance(path_or_bytes, str | os.PathLike | bytes):
            raise ConfigError(
                f"model: found a {type(path_or_bytes).__name__}, wanted a path, bytes or an onnx.ModelProto"
            )
        with refusing("bytes" if isinstance(path_or_bytes, bytes) else str(path_or_bytes)):
            self._make(_load(path_or_bytes), options, threads, allow_float=allow_float, fallback=fallback)

    def _make(
        self, model: ir.Model, options: Options, threads: int | None, *, allow_float: bool, fallback: bool
    ) -> None:
        self._inputs = [NodeArg.of(value) for value in model.graph.inputs]
        self._outputs = [NodeArg.of(value) for value in model.graph.outputs]
        self._known = [output.name for output in self._outputs]
        self._constants = {
            str(value.name): value.const_value.numpy()
            for value in model.graph.outputs
            if value.const_value is not None
        }
        planned = plan(model, find_steps(model.graph, options))
        integers = any(isinstance(step, Step) for step in planned)
        if not integers and not allow_float and fallback:
            _refuse_float(model)
        self._threads = default_threads() if threads is None else threads
        if threads is None and integers:
            threads = 1
        steps = [
            step
            if isinstance(step, Step)
            else SegmentStep(step, threads)
            if fallback
            else NumpyStep(step, model.opset_imports.get("", 1))
            for step in planned
        ]
        computed = [value for value in model.graph.outputs if str(value.name) not in self._constants]
        self._network = build(steps, model.graph.inputs, computed)
        self._programs = Programs(self._network, self._threads)

    def get_inputs(self) -> list[NodeArg]:
        """Return the model's inputs."""
        return list(self._inputs)

    def get_outputs(self) -> list[NodeArg]:
        """Return the model's outputs."""
        return list(self._outputs)

    def steps(self) -> list[StepInfo]:
        """Return the steps of the session in the order in which they run."""
        return [_describe(instruction.step) for instruction in self._network.instructions]

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights of the integer layers take, in the forms that have been needed so far."""
        return sum(step.weight_bytes for step in self.steps())

    @property
    def activation_bytes(self) -> int:
        """Memory that is laid out for activations, of all shapes of input that are remembered."""
        return self._programs.memory_bytes

    def run(
        self, output_names: Sequence[str] | None, input_feed: Feeds, run_options: Any = None
    ) -> list[NDArray[Any]]:
        """Compute outputs.

        Parameters
        ----------
        output_names : sequence of str or None
            Which outputs, in which order; None for all.
        input_feed : mapping of str to ndarray
            An array for each input.
        run_options : object, optional
            Not used: it stands where onnxruntime has it.

        Returns
        -------
        list of ndarray

        Raises
        ------
        DataError
            If an input is missing, unknown or of another type or shape, or an output has no such name.
        """
        wanted = self._known if output_names is None else output_names
        for name in wanted:
            if name not in self._known:
                raise DataError(f"output {name!r}: not of this model, wanted one of {', '.join(self._known)}")
        feeds = check_feeds(self._inputs, input_feed)
        computed = wanted if not self._constants else [name for name in wanted if name not in self._constants]
        try:
            values = self._programs.run(feeds, computed)
        except FgqError:
            raise
        except Exception as error:
            raise unexpected("inputs", error, DataError) from error
        return [values[name] if name in values else self._constants[name].copy() for name in wanted]

    def profile(self, input_feed: Feeds, repeats: int = 20) -> list[StepTime]:
        """Time each step.

        Parameters
        ----------
        input_feed : mapping of str to ndarray
            An array for each input.
        repeats : int
            How many runs to take the medians of, after two to warm up.

        Raises
        ------
        DataError
            As for `run`.
        """
        feeds = check_feeds(self._inputs, input_feed)
        with refusing("inputs", DataError):
            runs = [self._programs.timed(feeds) for _ in range(repeats + 2)][2:]
        return [
            StepTime(step=_describe(instruction.step), seconds=median(times), output_bytes=size)
            for instruction, times, size in zip(
                self._network.instructions,
                zip(*(run.seconds for run in runs), strict=True),
                runs[-1].output_bytes,
                strict=True,
            )
        ]

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Session cannot be pickled: make one in each process, from the model's path")


def _named(kind: type[T], what: str, given: str | T) -> T:
    try:
        return kind(given)
    except ValueError:
        raise ConfigError(f"{what}: found {given!r}, wanted one of {', '.join(kind)}") from None


def _describe(step: Runnable) -> StepInfo:
    return StepInfo(
        name=step.name, kernel=step.kernel, tier=step.tier, nodes=step.nodes, weight_bytes=step.resident_bytes
    )


def _refuse_float(model: ir.Model) -> None:
    """Refuse a model of layers that fgq could run, were they quantized."""
    layers = float_products(model.graph)
    if layers:
        first = layers[0].name or layers[0].op_type
        raise ModelError(
            f"model: found {len(layers)} float layers ({first}, ..) and no quantized ones; convert it first "
            "(fgq convert), run it in onnxruntime, or give allow_float=True"
        )


def _load(path_or_bytes: str | os.PathLike[str] | bytes) -> ir.Model:
    if isinstance(path_or_bytes, bytes):
        try:
            model = onnx_file.from_proto(onnx.ModelProto.FromString(path_or_bytes))
        except DecodeError:
            raise ModelError("bytes: found something else, wanted an ONNX model") from None
    else:
        model = onnx_file.load(path_or_bytes)
    recognise(model, "model" if isinstance(path_or_bytes, bytes) else str(path_or_bytes))
    external.hold(model)
    common.RemoveInitializersFromInputsPass()(model)
    InferShapes()(model)
    check_geometry(model, "model", inferred=True)
    return model
