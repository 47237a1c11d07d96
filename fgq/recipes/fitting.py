"""One layer's weights and bias by several recipes, from what data say of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fgq.config import Step
from fgq.converters.biases import Bias, find_bias
from fgq.converters.float_layers import Layer
from fgq.quantization.scheme import WeightScheme
from fgq.quantization.tensor import QuantizedTensor
from fgq.quantization.weights import as_rows, assemble, largest_bias, quantize_bias
from fgq.recipes.moments import Float, Moments, Single
from fgq.recipes.observation import LEAST_PARTS, Observed
from fgq.recipes.problem import Problem, solve
from fgq.recipes.reductions import conv_groups
from fgq.recipes.rows import Grouping, Rows, nearest
from fgq.recipes.selection import best_of, matched

Proposals = Callable[[Problem, Grouping, WeightScheme, Float | None, Collection[Step]], Iterator[Rows]]
"""Proposes rows: takes the problem, the groups, the scheme, lower bounds on the row scales, and the steps to
leave out."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A layer to refine.

    Parameters
    ----------
    layer : Layer
        In the graph whose activations are quantized.
    scheme : WeightScheme
    input_scale : float or None
        The scale of its quantized input; None where that stays float.
    least : ndarray of float64, shape (M,), or None
        Lower bounds on its row scales.
    """

    layer: Layer
    scheme: WeightScheme
    input_scale: float | None
    least: Float | None


class Fit(NamedTuple):
    """Rows of a layer, and its corrected bias.

    Parameters
    ----------
    rows : Rows
    bias : ndarray of float32, or None
        None where it keeps its own.
    """

    rows: Rows
    bias: Single | None


class Fitting:
    """Quantizes one layer by several recipes.

    Parameters
    ----------
    task : Task
    observed : Observed
    without : collection of Step
    original : Bias or None
        The bias that the float network has.

    Attributes
    ----------
    layer : Layer
    observed : Observed
    original : ndarray of float32, or None
        The values of that bias, where data may change them.
    grouping : Grouping
    """

    def __init__(
        self, task: Task, observed: Observed, without: Collection[Step], original: Bias | None
    ) -> None:
        self._task, self._without = task, without
        self.observed, self.layer = observed, task.layer
        layer = task.layer
        weight = as_rows(layer.weight_array, layer.group_axis, layer.channel_axis).astype(np.float64)
        M, E, L = weight.shape
        C = conv_groups(layer)
        self.grouping = Grouping.of(task.scheme, E, L)
        self._matrices = weight.reshape(C, M // C, E * L)
        self._least = [None] * C if task.least is None else np.split(task.least, C)
        self._nearest = [
            nearest(weights, task.scheme, self.grouping, bound)
            for weights, bound in zip(self._matrices, self._least, strict=True)
        ]
        self._place = find_bias(layer)
        few = len(observed.parts.positions) < LEAST_PARTS
        if few and self._place is not None and self._place.node is not layer.node:
            self._place = None  # the Add behind a MatMul
        self.original = None if self._place is None or original is None else original.values

    def nearest(self) -> Fit:
        """Return the layer as it is without data."""
        return Fit(_join(self._nearest), self.original)

    def as_it_is(self, tensor: QuantizedTensor) -> Fit:
        """Return the layer with a weight that was found before, and the bias that the model has now."""
        (plane,) = tensor.planes
        axes = (tensor.channel_axis, tensor.group_axis), (0, -1)
        codes, alpha = np.moveaxis(plane.codes, *axes), np.moveaxis(plane.alpha, *axes)
        M = tensor.rows
        rows = Rows(
            codes.reshape(M, -1),
            np.broadcast_to(alpha.reshape(len(alpha), -1), (M, alpha.size // len(alpha))),
            np.broadcast_to(tensor.row_scale.astype(np.float64), M),
        )
        return Fit(rows, None if self._place is None else self._place.values)

    def plain(self) -> Fit:
        """Return the layer as the recipe ``fgq`` has it, against which all others are held."""
        bias = self._bias if self._is_conv else None  # its statistics are those of batch normalization
        if bias is None:
            return Fit(_join(self._nearest), None)
        train, _ = self._centred()
        return self._with_bias(self._matched(train), bias)

    def fit(self, propose: Proposals) -> Fit:
        """Return the layer with the best of the rows that a recipe proposes, by held-out data.

        Parameters
        ----------
        propose : callable
            As `fgq.recipes.registered.RegisteredRecipe.propose`.
        """
        bias = self._bias
        train, held_out = (self.observed.train, self.observed.held_out) if bias is None else self._centred()
        matched = self._matched(train) if self._is_conv and bias is not None else []
        scheme, without = self._task.scheme, self._without
        problems = solve(self._matrices, train, held_out, keep_weights=Step.TARGET in without)
        parts = []
        for c, (rows, problem, bound) in enumerate(zip(self._nearest, problems, self._least, strict=True)):
            proposals = propose(problem, self.grouping, scheme, bound, without)
            every = chain(matched[c : c + 1], proposals)
            parts.append(best_of(rows, every, held_out.of(c), self.grouping))
        return self._with_bias(parts, bias)

    @property
    def _is_conv(self) -> bool:
        return self.layer.op_type == "Conv"

    @property
    def _bias(self) -> Bias | None:
        """The bias that data correct, if there is one."""
        return None if Step.BIAS in self._without else self._place

    def _centred(self) -> tuple[Moments, Moments]:
        """Return the moments about their means: errors are those with the bias that the others want."""
        train, held_out = self.observed.train, self.observed.held_out
        return train.centred(self._matrices), held_out.centred(self._matrices, at=train)

    def _with_bias(self, parts: Sequence[Rows], bias: Bias | None) -> Fit:
        rows = _join(parts)
        return Fit(rows, None if bias is None else self._corrected(bias, rows))

    def _matched(self, train: Moments) -> list[Rows]:
        return [
            matched(rows, train.of(c), self.grouping, bound)
            for c, (rows, bound) in enumerate(zip(self._nearest, self._least, strict=True))
        ]

    def _corrected(self, bias: Bias, rows: Rows) -> Single:
        """Return a bias that makes each output's mean what it should be, where held-out data agree."""
        weights = rows.weights(self.grouping).reshape(self._matrices.shape)
        parts = self.observed.train, self.observed.held_out
        train, held_out = (moments.mean_error(weights).reshape(-1) for moments in parts)
        share = parts[0].positions / (parts[0].positions + parts[1].positions)
        every = share * train + (1 - share) * held_out
        # The outputs of a Conv or Gemm hold its bias, those of a MatMul do not.
        own = bias.node is self._task.layer.node
        first = bias.values if self.original is None else self.original
        before = first if own else np.zeros_like(first)
        better = np.abs(held_out - train) <= np.abs(held_out - before)
        change = every - before
        # Less what chance may have made of it (James & Stein 1961), as few samples' means are uncertain.
        chance = self.observed.parts.mean_variance(weights).reshape(-1)
        certain = np.divide(
            change**2 - chance, change**2, out=np.zeros_like(change), where=change**2 > chance
        )
        values = first + np.where(better, certain * change, 0.0)
        if own and self._task.input_scale is not None:
            bound = largest_bias(self._task.input_scale, rows.row_scale, self._task.layer.products)
            values = np.clip(values, -bound, bound)
        corrected: Single = values.astype(np.float32)
        return corrected

    def shift(self, fit: Fit) -> Float:
        """Return what the bias that is written adds to the one before."""
        place, scale = self._place, self._task.input_scale
        if place is None:
            return np.zeros(len(fit.rows.row_scale))
        values = self._values(fit).astype(np.float64)
        if place.node is self._task.layer.node and scale is not None:
            row_scale = fit.rows.row_scale.astype(np.float32)
            step = (np.float32(scale) * row_scale).astype(np.float64)
            values = quantize_bias(values, scale, row_scale) * step
        return values - place.values

    def tensor(self, rows: Rows) -> QuantizedTensor:
        """Return rows as the layer's weight."""
        layer, scheme = self._task.layer, self._task.scheme
        return assemble(
            rows.codes,
            np.ones(1, np.uint8) if scheme.alpha_limit == 1 else rows.alpha,
            rows.row_scale[0] if self.grouping.shared else rows.row_scale,
            scheme,
            shape=layer.shape,
            group_axis=layer.group_axis,
            channel_axis=layer.channel_axis,
        )

    def mixed(self, chosen: Fit, farther: NDArray[np.bool_], plain: Fit) -> Fit:
        """Return a fit with some of its rows, and their biases, as another has them."""
        rows = chosen.rows.where(farther, plain.rows)
        if self._place is None or (chosen.bias is None and plain.bias is None):
            return Fit(rows, None)
        return Fit(rows, np.where(farther, self._values(plain), self._values(chosen)))

    def _values(self, fit: Fit) -> Single:
        """Return the bias of a layer that has a place for one."""
        found = self.original if fit.bias is None else fit.bias
        assert found is not None
        return found


def _join(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all reductions of a layer."""
    return Rows(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
