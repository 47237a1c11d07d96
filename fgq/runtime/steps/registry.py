"""The registry of patterns: what finds the steps of a graph, and in which order.

A kind of step registers itself: :func:`operator` decorates a function that recognises a step at one node,
:func:`finder` one that looks at the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

import onnx_ir as ir

from fgq.kernels.products.dispatch import Memory, Wish
from fgq.runtime.steps.step import Step


class Turn(IntEnum):
    """When a finder is asked. The first step found for a value stands."""

    PRODUCTS = 0
    """Products with weights, and the additions that run within them."""

    REALS = 1
    """Operators on real values, which run here only beside such products."""

    OPERATORS = 2
    """Operators between quantizers."""

    EDGES = 3
    """QuantizeLinears whose operators no other step takes."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a session is to run.

    Parameters
    ----------
    wish : Wish
        Which kernels may run its layers.
    memory : Memory
        How they hold the weights.
    """

    wish: Wish = Wish.AUTO
    memory: Memory = Memory.AUTO


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """What a finder looks at.

    Parameters
    ----------
    graph : onnx_ir.Graph
        In topological order.
    options : Options
    steps : dict of onnx_ir.Value to Step
        Those found so far, by their results; a step that a finder yields is entered before the next one.
    """

    graph: ir.Graph
    options: Options
    steps: dict[ir.Value, Step] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.graph.opset_imports.get("", 1)


SomeStep = TypeVar("SomeStep", bound=Step)

Finder = Callable[[Scope], Iterable[Step]]

_FINDERS: list[tuple[Turn, Finder]] = []


def finder(turn: Turn) -> Callable[[Finder], Finder]:
    """Register a function that yields steps of a graph.

    Parameters
    ----------
    turn : Turn
        Two finders of one turn must not find steps for the same value.
    """

    def register(find: Finder) -> Finder:
        _FINDERS.append((turn, find))
        return find

    return register


def operator(read: Callable[[ir.Node], SomeStep | None]) -> Callable[[ir.Node], SomeStep | None]:
    """Register a function that recognises an operator between quantizers, given the operator's node."""

    @finder(Turn.OPERATORS)
    def find(scope: Scope) -> Iterator[Step]:
        for node in scope.graph:
            step = read(node)
            if step is not None:
                yield step

    return read


def finders() -> list[Finder]:
    """Return what finds steps, in the order in which it is to be asked."""
    return [find for _, find in sorted(_FINDERS, key=lambda entry: entry[0])]
