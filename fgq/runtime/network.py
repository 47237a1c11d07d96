"""From steps to instructions: every value in a slot, in the order of axes that its readers want."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from fgq.errors import ModelError
from fgq.runtime.orders import Order
from fgq.runtime.steps.moves import ReorderStep
from fgq.runtime.steps.step import Runnable


@dataclass(frozen=True, slots=True, eq=False)
class Instruction:
    """A step with the slots that it reads and writes.

    Parameters
    ----------
    step : Runnable
    reads, writes : tuple of int
    """

    step: Runnable
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Network:
    """What a session runs.

    Parameters
    ----------
    instructions : list of Instruction
        In the order in which they run.
    inputs, outputs : dict of str to int
        The slots of the model's inputs and outputs.
    slots : int
        How many there are.
    """

    instructions: list[Instruction] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    slots: int = 0


@dataclass(frozen=True, slots=True)
class _Form:
    """How a value is held: its order of axes, and whether an int8 is held as the uint8 128 above it."""

    order: Order
    raised: bool


class _Builder:
    def __init__(self) -> None:
        self.network = Network()
        self._held: dict[ir.Value, dict[_Form, int]] = {}

    def add(self, step: Runnable) -> None:
        orders = step.orders([self._first(value).order for value in step.sources])
        pairs = zip(step.sources, orders.sources, strict=True)
        reads = tuple(self.slot(value, _form(step, value, order)) for value, order in pairs)
        writes = tuple(self.new(value, _form(step, value, orders.result)) for value in step.results)
        self.network.instructions.append(Instruction(step.in_orders(orders), reads, writes))

    def new(self, value: ir.Value, form: _Form) -> int:
        slot = self.network.slots
        self.network.slots += 1
        self._held.setdefault(value, {})[form] = slot
        return slot

    def slot(self, value: ir.Value, form: _Form) -> int:
        """Return where a value is held in this form, brought into it if need be."""
        held = self._forms(value)
        if form not in held:
            first, source = next(iter(held.items()))
            flipped = first.raised != form.raised
            dtype = np.uint8 if form.raised else _dtype(value)
            step = ReorderStep(value, first.order, form.order, dtype, flipped=flipped)
            self.network.instructions.append(Instruction(step, (source,), (self.new(value, form),)))
        return held[form]

    def _first(self, value: ir.Value) -> _Form:
        return next(iter(self._forms(value)))

    def _forms(self, value: ir.Value) -> dict[_Form, int]:
        if value not in self._held:
            raise ModelError(
                f"model: found the value {value.name!r}, which nothing before its readers computes"
            )
        return self._held[value]


def build(steps: Sequence[Runnable], inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> Network:
    """Give every value a slot, and bring those into another order whose readers want it.

    Parameters
    ----------
    steps : sequence of Runnable
        In the order in which they run.
    inputs, outputs : sequence of onnx_ir.Value
        The model's.
    """
    builder = _Builder()
    plain = _Form(None, raised=False)
    for value in inputs:
        builder.network.inputs[str(value.name)] = builder.new(value, plain)
    for step in steps:
        builder.add(step)
    for value in outputs:
        builder.network.outputs[str(value.name)] = builder.slot(value, plain)
    return builder.network


def _form(step: Runnable, value: ir.Value, order: Order) -> _Form:
    return _Form(order, raised=step.raised and value.dtype == ir.DataType.INT8)


def _dtype(value: ir.Value) -> type[np.generic]:
    assert value.dtype is not None
    return np.dtype(value.dtype.numpy()).type
