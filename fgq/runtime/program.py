"""A network made ready for inputs of one set of shapes: memory laid out, every call fixed.

The first run with some shapes goes step by step and makes arrays as it goes (:func:`trace`); what it learns
about sizes is enough to lay out all later ones (:class:`Program`), which then make no arrays but the results.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from fgq.kernels.boundary import ready
from fgq.kernels.products.driver import aligned
from fgq.runtime.edges import QuantizeStep
from fgq.runtime.memory import Tenant, arrange
from fgq.runtime.network import Instruction, Network
from fgq.runtime.segments import ForeignStep, SegmentStep, bindable
from fgq.runtime.step import Array, Call, Step

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
        step = instruction.step
        if isinstance(step, ForeignStep):
            for slot, value in zip(instruction.writes, step.run(arrays), strict=True):
                values[slot] = value
        else:
            arrays = [ready(array) for array in arrays]
            (slot,) = instruction.writes
            view = step.alias(arrays)
            if view is None:
                values[slot] = aligned(step.shape(arrays), step.dtype)
                if values[slot].size:
                    step.bind(
                        arrays,
                        values[slot],
                        aligned((step.scratch_bytes(arrays, threads),), np.uint8),
                        threads,
                    )()
            else:
                values[slot], roots[slot] = view, roots[instruction.reads[0]]
        if times is not None:
            times.seconds.append(time.perf_counter() - begin)
            times.output_bytes.append(sum(getattr(values[slot], "nbytes", 0) for slot in instruction.writes))
    outputs = {name: values[slot] for name, slot in network.outputs.items()}
    steps = [instruction.step for instruction in network.instructions]
    foreign = any(isinstance(step, ForeignStep) and not isinstance(step, SegmentStep) for step in steps)
    if foreign or not all(map(bindable, values)):
        return outputs, None
    return outputs, Layout([(value.shape, value.dtype) for value in values], roots)


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
        self._network, self._feeds = network, dict[str, Array]()
        tenants, places = _tenants(network, layout)
        offsets, total = arrange(tenants)
        memory = aligned((total,), np.uint8)
        arrays: list[Array] = [None] * network.slots  # type: ignore[list-item]
        for slot, place in places.items():
            shape, dtype = layout.forms[slot]
            size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            arrays[slot] = memory[offsets[place] : offsets[place] + size].view(dtype).reshape(shape)
        self._named = {slot: name for name, slot in network.inputs.items()}
        read = {
            slot
            for instruction in network.instructions
            for slot in instruction.reads
            if not isinstance(instruction.step, QuantizeStep)
        }
        handed_on = read.union(network.outputs.values())
        self._copied = {name: arrays[slot] for slot, name in self._named.items() if slot in handed_on}
        self.calls, self._scratch = list[Call](), aligned((0,), np.uint8)
        self._make_calls(arrays, threads)
        self.memory_bytes = total + self._scratch.nbytes
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
        self._take(feeds)
        for call in self.calls:
            call()
        self._feeds.clear()
        return [self._outputs[name].copy() for name in wanted]

    def run_timed(self, feeds: Mapping[str, Array], times: Times) -> None:
        """Run as `run` does, and tell how long each instruction took."""
        self._take(feeds)
        for call in self.calls:
            begin = time.perf_counter()
            call()
            times.seconds.append(time.perf_counter() - begin)
        times.output_bytes += self._written
        self._feeds.clear()

    def _take(self, feeds: Mapping[str, Array]) -> None:
        self._feeds.update(feeds)
        for name, array in self._copied.items():
            np.copyto(array, feeds[name])

    def _make_calls(self, arrays: list[Array], threads: int) -> None:
        todo: list[tuple[Step, list[Array], Array, Instruction] | Call] = []
        most = 0
        for instruction in self._network.instructions:
            read = [arrays[slot] for slot in instruction.reads]
            step = instruction.step
            if isinstance(step, ForeignStep):
                assert isinstance(step, SegmentStep)
                todo.append(step.bind(read, [arrays[slot] for slot in instruction.writes]))
                continue
            (slot,) = instruction.writes
            view = step.alias(read)
            if view is not None:
                arrays[slot] = view
                todo.append(_nothing)
                continue
            most = max(most, step.scratch_bytes(read, threads))
            todo.append((step, read, arrays[slot], instruction))
        self._scratch = aligned((most,), np.uint8)
        for entry in todo:
            if not isinstance(entry, tuple):
                self.calls.append(entry)
                continue
            step, read, out, instruction = entry
            if isinstance(step, QuantizeStep) and instruction.reads[0] in self._named:
                self.calls.append(
                    step.bind_feed(
                        self._feeds, self._named[instruction.reads[0]], read[0].shape, out, threads
                    )
                )
            else:
                self.calls.append(step.bind(read, out, self._scratch, threads))


def _nothing() -> None: ...


def _tenants(network: Network, layout: Layout) -> tuple[list[Tenant], dict[int, int]]:
    """Return what needs memory from when to when, and which of them each slot is."""
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
    tenants, places = list[Tenant](), dict[int, int]()
    for slot, begin in first.items():
        shape, dtype = layout.forms[slot]
        places[slot] = len(tenants)
        size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        tenants.append(Tenant(size, begin, last[slot]))
    return tenants, places


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
