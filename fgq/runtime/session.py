"""`Session`: run a converted model, in the shape of onnxruntime's InferenceSession."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx_ir.passes import common

from fgq import onnx_file
from fgq.errors import ConfigError, DataError, ModelError
from fgq.kernels.dispatch import Memory, Wish
from fgq.kernels.threads import default_threads
from fgq.runtime.compiler import Options, find_steps
from fgq.runtime.network import build
from fgq.runtime.plan import plan
from fgq.runtime.program import Programs
from fgq.runtime.segments import SegmentStep
from fgq.runtime.step import Step
from fgq.shapes import InferShapes

Feeds = Mapping[str, NDArray[Any]]

T = TypeVar("T", Wish, Memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeArg:
    """The name, shape and type of an input or output, as onnxruntime describes them.

    Parameters
    ----------
    name : str
    shape : list of int, str or None
        A name or None stands for a dimension that may vary.
    type : str
        Such as ``tensor(float)``.
    """

    name: str
    shape: list[int | str | None]
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """One step of a session: what runs it, and what it runs.

    Parameters
    ----------
    name : str
        The layer, or the outputs of a segment.
    kernel : str
        The kernel, or ``onnxruntime``.
    """

    name: str
    kernel: str


class Session:
    """A converted model, its quantized layers run by fgq's kernels and all else by onnxruntime.

    The integers are those of onnxruntime on the same file. A float model runs whole in onnxruntime. An input
    that has a default value in the model is a constant.

    Parameters
    ----------
    path_or_bytes : path-like or bytes
        A model file, or its contents.
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

    Raises
    ------
    ModelError
        If the model cannot be read or planned.
    ConfigError
        If `kernels` is no known wish.

    Examples
    --------
    >>> session = Session("model.onnx")                              # doctest: +SKIP
    >>> logits, = session.run(["logits"], {"image": image})          # doctest: +SKIP
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        *,
        kernels: str | Wish = Wish.AUTO,
        memory: str | Memory = Memory.AUTO,
        threads: int | None = None,
    ) -> None:
        wish, held = _named(Wish, "kernels", kernels), _named(Memory, "memory", memory)
        model = _load(path_or_bytes)
        self._inputs = [_describe(value) for value in model.graph.inputs]
        self._outputs = [_describe(value) for value in model.graph.outputs]
        self._constants = {
            str(value.name): value.const_value.numpy()
            for value in model.graph.outputs
            if value.const_value is not None
        }
        planned = plan(model, find_steps(model.graph, Options(wish, held)))
        self._threads = default_threads() if threads is None else threads
        if threads is None and any(isinstance(step, Step) for step in planned):
            threads = 1
        steps = [step if isinstance(step, Step) else SegmentStep(step, threads) for step in planned]
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
        return [
            StepInfo(name=instruction.step.name, kernel=instruction.step.kernel)
            for instruction in self._network.instructions
        ]

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
        known = [output.name for output in self._outputs]
        wanted = known if output_names is None else list(output_names)
        for name in wanted:
            if name not in known:
                raise DataError(f"output {name!r}: not of this model, wanted one of {', '.join(known)}")
        computed = [name for name in wanted if name not in self._constants]
        values = self._programs.run(self._checked(input_feed), computed)
        return [values[name] if name in values else self._constants[name].copy() for name in wanted]

    def _checked(self, feeds: Feeds) -> dict[str, NDArray[Any]]:
        names = {value.name for value in self._inputs}
        if set(feeds) != names:
            found, wanted = (", ".join(sorted(some)) or "none" for some in (feeds, names))
            raise DataError(f"inputs: found {found}, wanted {wanted}")
        return {name: np.asarray(array) for name, array in feeds.items()}

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Session cannot be pickled: make one in each process, from the model's path")


def _named(kind: type[T], what: str, given: str | T) -> T:
    try:
        return kind(given)
    except ValueError:
        raise ConfigError(f"{what}: found {given!r}, wanted one of {', '.join(kind)}") from None


def _load(path_or_bytes: str | os.PathLike[str] | bytes) -> ir.Model:
    if isinstance(path_or_bytes, bytes):
        try:
            model = onnx_file.from_proto(onnx.ModelProto.FromString(path_or_bytes))
        except DecodeError:
            raise ModelError("bytes: found something else, wanted an ONNX model") from None
    else:
        model = onnx_file.load(path_or_bytes)
    model.graph.sort()
    common.RemoveInitializersFromInputsPass()(model)
    InferShapes()(model)
    return model


def _describe(value: ir.Value) -> NodeArg:
    shape: list[int | str | None] = [
        dim if isinstance(dim, int) else dim.value for dim in (value.shape or ())
    ]
    dtype = "float" if value.dtype is None else str(value.dtype).lower()
    return NodeArg(name=str(value.name), shape=shape, type=f"tensor({dtype})")
