"""A network made ready for inputs of one set of shapes: memory laid out, every call fixed.

The first run with some shapes goes step by step and makes arrays as it goes (:func:`trace`); what it learns
about sizes is enough to lay out all later ones (:class:`Program`), which then make no arrays but the results.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from fgq.kernels.products.driver import aligned
from fgq.runtime.memory import LiveRange, arrange
from fgq.runtime.network import Network
from fgq.runtime.segments import bindable
from fgq.runtime.steps.step import Array, Call, TakeInput

Shapes = tuple[tuple[int, ...] | None, ...]
"""Of the model's inputs, in their order."""


@dataclass(slots=True)
class Times:
    """What one run took.

    Parameters
    ----------
    seconds : list of float
        For each instruction.
    output_bytes : list of int
        What each wrote.
    """

    seconds: list[float] = field(default_factory=list)
    output_bytes: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """What a first run learnt.

    Parameters
    ----------
    forms : list of (shape, dtype)
        Of the array in each slot.
    roots : list of int
        The slot of whose memory an array is a view, its own where it is none.
    """

    forms: list[tuple[tuple[int, ...], np.dtype[Any]]]
    roots: list[int]


def trace(
    network: Network, feeds: Mapping[str, Any], threads: int, times: Times | None = None
) -> tuple[dict[str, Any], Layout | None]:
    """Run a network step by step.

    Parameters
    ----------
    network : Network
    feeds : mapping of str to array
        The model's inputs.
    threads : int
    times : Times, optional
        Filled in.

    Returns
    -------
    outputs : dict of str to array
    layout : Layout or None
        None where some values are not numbers or have no elements, and so no place to be planned.
    """
    values: list[Any] = [None] * network.slots
    roots = list(range(network.slots))
    for name, slot in network.inputs.items():
        values[slot] = feeds[name]
    for instruction in network.instructions:
        begin = time.perf_counter()
        arrays = [values[slot] for slot in instruction.reads]
        results, is_view = instruction.step.run_once(arrays, threads)
        for slot, value in zip(instruction.writes, results, strict=True):
            values[slot] = value
            if is_view:
                roots[slot] = roots[instruction.reads[0]]
        if times is not None:
            times.seconds.append(time.perf_counter() - begin)
            times.output_bytes.append(sum(getattr(values[slot], "nbytes", 0) for slot in instruction.writes))
    outputs = {name: values[slot] for name, slot in network.outputs.items()}
    plannable = all(instruction.step.plannable for instruction in network.instructions)
    if not plannable or not all(map(bindable, values)):
        return outputs, None
    return outputs, Layout([(value.shape, value.dtype) for value in values], roots)


@dataclass(frozen=True, slots=True, eq=False)
class _Direct:
    """An instruction that reads a caller's array, which is not copied into planned memory.

    Parameters
    ----------
    index : int
        Of the instruction.
    name : str
        Of the model's input.
    take : TakeInput
        The call.
    """

    index: int
    name: str
    take: TakeInput


class Program:
    """A network with all its memory, for one caller at a time.

    Parameters
    ----------
    network : Network
    layout : Layout
        Of a run with the same shapes.
    threads : int
    """

    def __init__(self, network: Network, layout: Layout, threads: int) -> None:
        ranges, index_of = _live_ranges(network, layout)
        offsets, total = arrange(ranges)
        memory = aligned((total,), np.uint8)
        arrays: list[Array] = [None] * network.slots  # type: ignore[list-item]
        for slot, index in index_of.items():
            shape, dtype = layout.forms[slot]
            begin = offsets[index]
            arrays[slot] = memory[begin : begin + ranges[index].size].view(dtype).reshape(shape)
        scratch_bytes = _set_views(network, arrays, threads)
        self._scratch = aligned((scratch_bytes,), np.uint8)
        self.memory_bytes = total + self._scratch.nbytes
        self._calls, self._direct = list[Call](), list[_Direct]()
        copied = self._bind(network, arrays, threads)
        self._copied = {name: arrays[slot] for name, slot in network.inputs.items() if slot in copied}
        self._outputs = {name: arrays[slot] for name, slot in network.outputs.items()}
        self._written = [
            sum(arrays[slot].nbytes for slot in instruction.writes) for instruction in network.instructions
        ]

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """Compute outputs.

        Parameters
        ----------
        feeds : mapping of str to ndarray
            The model's inputs, of the program's shapes.
        wanted : sequence of str
            Which outputs.
        """
        for call in self._calls_for(feeds):
            call()
        return [self._outputs[name].copy() for name in wanted]

    def run_timed(self, feeds: Mapping[str, Array], times: Times) -> None:
        """Run as `run` does, and tell how long each instruction took."""
        for call in self._calls_for(feeds):
            begin = time.perf_counter()
            call()
            times.seconds.append(time.perf_counter() - begin)
        times.output_bytes += self._written

    def _calls_for(self, feeds: Mapping[str, Array]) -> list[Call]:
        """Return the calls of one run; inputs that some of them read are copied into planned memory."""
        for name, array in self._copied.items():
            np.copyto(array, feeds[name])
        calls = self._calls.copy()
        for direct in self._direct:
            calls[direct.index] = partial(direct.take, feeds[direct.name])
        return calls

    def _bind(self, network: Network, arrays: Sequence[Array], threads: int) -> set[int]:
        """Make the calls, and return the slots that they read and those of the outputs."""
        names = {slot: name for name, slot in network.inputs.items()}
        read = set(network.outputs.values())
        for index, instruction in enumerate(network.instructions):
            step = instruction.step
            sources = [arrays[slot] for slot in instruction.reads]
            outs = [arrays[slot] for slot in instruction.writes]
            name = names.get(instruction.reads[0]) if instruction.reads else None
            take = None if name is None else step.bind_for_input(sources[0].shape, outs[0], threads)
            if name is not None and take is not None:
                self._direct.append(_Direct(index, name, take))
                self._calls.append(_nothing)
                continue
            read.update(instruction.reads)
            is_view = step.alias(sources) is not None
            self._calls.append(_nothing if is_view else step.bind_all(sources, outs, self._scratch, threads))
        return read


def _set_views(network: Network, arrays: list[Array], threads: int) -> int:
    """Enter the results that are views of others, and return how much scratch memory the steps need."""
    most = 0
    for instruction in network.instructions:
        sources = [arrays[slot] for slot in instruction.reads]
        view = instruction.step.alias(sources)
        if view is None:
            most = max(most, instruction.step.scratch_bytes(sources, threads))
        else:
            arrays[instruction.writes[0]] = view
    return most


def _nothing() -> None: ...


def _live_ranges(network: Network, layout: Layout) -> tuple[list[LiveRange], dict[int, int]]:
    """Return from when to when memory is needed, and the index of the live range that each slot has.

    Slots whose array is a view of another one's have none.
    """
    first, last = dict[int, int](), dict[int, int]()
    for slot in network.inputs.values():
        first[slot] = last[slot] = -1
    for index, instruction in enumerate(network.instructions):
        for slot in instruction.writes:
            root = layout.roots[slot]
            first.setdefault(root, index)
            last[root] = max(index, last.get(root, index))
        for slot in instruction.reads:
            last[layout.roots[slot]] = index
    for slot in network.outputs.values():
        last[layout.roots[slot]] = len(network.instructions)
    ranges, index_of = list[LiveRange](), dict[int, int]()
    for slot, begin in first.items():
        shape, dtype = layout.forms[slot]
        index_of[slot] = len(ranges)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        ranges.append(LiveRange(size, begin, last[slot]))
    return ranges, index_of


class Programs:
    """The programs of a session, by the shapes of its inputs.

    Several threads may run one session: each takes a program of its own, and gives it back. For at most
    `KEPT` sets of shapes programs are kept, those used last.

    Parameters
    ----------
    network : Network
    threads : int
    """

    KEPT = 8

    def __init__(self, network: Network, threads: int) -> None:
        self._network, self._threads = network, threads
        self._known: OrderedDict[Shapes, _Known] = OrderedDict()
        self._lock = Lock()

    def run(self, feeds: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        """Compute outputs.

        Parameters
        ----------
        feeds : mapping of str to array
            The model's inputs.
        wanted : sequence of str
            Which outputs.

        Raises
        ------
        DataError
            If onnxruntime cannot run its part of the model on these inputs.
        """
        shapes = _shapes(feeds)
        program = self._take(shapes)
        if program is not None:
            try:
                results = program.run(feeds, wanted)
            except Exception:  # onnxruntime's have no base: sizes that depend on the data, or bad data
                self._forget(shapes)
            else:
                self._give_back(shapes, program)
                return dict(zip(wanted, results, strict=True))
        outputs, layout = trace(self._network, feeds, self._threads)
        self._learn(shapes, layout)
        return {name: _own(outputs[name], feeds) for name in wanted}

    @property
    def memory_bytes(self) -> int:
        """Memory that is laid out for activations."""
        with self._lock:
            return sum(program.memory_bytes for known in self._known.values() for program in known.idle)

    def timed(self, feeds: Mapping[str, Any]) -> Times:
        """Run, and tell what each instruction took.

        Raises
        ------
        DataError
            If onnxruntime cannot run its part of the model on these inputs.
        """
        times, shapes = Times(), _shapes(feeds)
        program = self._take(shapes)
        if program is None:
            self._learn(shapes, trace(self._network, feeds, self._threads, times)[1])
            return times
        program.run_timed(feeds, times)
        self._give_back(shapes, program)
        return times

    def _take(self, shapes: Shapes) -> Program | None:
        with self._lock:
            known = self._known.get(shapes)
            if known is None or known.layout is None:
                return None
            self._known.move_to_end(shapes)
            if known.idle:
                return known.idle.pop()
        return Program(self._network, known.layout, self._threads)

    def _give_back(self, shapes: Shapes, program: Program) -> None:
        with self._lock:
            known = self._known.get(shapes)
            if known is not None:
                known.idle.append(program)

    def _learn(self, shapes: Shapes, layout: Layout | None) -> None:
        with self._lock:
            self._known.setdefault(shapes, _Known(layout))
            self._known.move_to_end(shapes)
            while len(self._known) > self.KEPT:
                self._known.popitem(last=False)

    def _forget(self, shapes: Shapes) -> None:
        """Run these shapes step by step from now on."""
        with self._lock:
            self._known[shapes] = _Known(None)


@dataclass(slots=True, eq=False)
class _Known:
    """What is known of one set of shapes: no layout where nothing can be planned."""

    layout: Layout | None
    idle: list[Program] = field(default_factory=list)


def _shapes(feeds: Mapping[str, Any]) -> Shapes:
    return tuple([getattr(array, "shape", None) for array in feeds.values()])


def _own(value: Any, feeds: Mapping[str, Any]) -> Any:
    """Return a result that shares no memory with an input."""
    shared = isinstance(value, np.ndarray) and any(
        isinstance(array, np.ndarray) and np.may_share_memory(value, array) for array in feeds.values()
    )
    return value.copy() if shared else value
