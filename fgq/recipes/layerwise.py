"""Refining the weights of a network, layer by layer, on the prefix that is already quantized.

The network runs twice, side by side: as it was, which says what a layer should give, and with the weights
and activations quantized so far, which says what the layer will read. Both keep the values at the place
that was reached (`fgq.recipes.pieces`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.config import Recipe, Step
from fgq.converters.biases import Bias, find_bias
from fgq.converters.float_layers import Layer, find_layers
from fgq.data.samples import Feed
from fgq.quantization.scheme import WeightScheme
from fgq.quantization.tensor import QuantizedTensor
from fgq.quantization.weights import as_rows, assemble, largest_bias, quantize_bias
from fgq.recipes import recipes
from fgq.recipes.checkpoint import Checkpoint, Finished
from fgq.recipes.guard import Distance, distance
from fgq.recipes.moments import Float, Moments, Single
from fgq.recipes.observation import LEAST_PARTS, Observed, observe_layer
from fgq.recipes.pieces import Prefix, Replacement
from fgq.recipes.problem import solve
from fgq.recipes.reductions import conv_groups
from fgq.recipes.rows import Grouping, Rows, nearest
from fgq.report import LayerCheck

NOTED = 1.01
"""Outputs that go back to what ``fgq`` has are warned of where a layer's error was this much larger."""


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


class Refined(NamedTuple):
    """What became of a network.

    Parameters
    ----------
    weights : dict of onnx_ir.Node to QuantizedTensor
        The weight of each layer.
    warnings : list of str
        For whom the data were too few.
    checks : dict of onnx_ir.Node to LayerCheck
        How near layers are to the float network, beside the recipe ``fgq``; none of what that recipe made.
    """

    weights: dict[ir.Node, QuantizedTensor]
    warnings: list[str]
    checks: dict[ir.Node, LayerCheck]


def refine_network(
    model: ir.Model,
    float_model: ir.Model,
    tasks: Sequence[Task],
    feeds: Sequence[Feed],
    recipe: Recipe,
    progress: Callable[[int, int], None],
    checkpoint: Checkpoint | None = None,
    without: Collection[Step] = (),
    given: Mapping[ir.Node, QuantizedTensor] | None = None,
) -> Refined:
    """Quantize the weights of layers, and correct the biases of a model in place.

    Parameters
    ----------
    model : onnx_ir.Model
        With quantizers inserted and float weights.
    float_model : onnx_ir.Model
        The same before quantizers were inserted; nodes have the same names.
    tasks : sequence of Task
        In graph order.
    feeds : sequence of feed
        Calibration data.
    recipe : Recipe
    progress : callable
        Called as ``progress(done, total)``.
    checkpoint : Checkpoint, optional
        Where finished layers are kept, and found if they were finished before.
    without : collection of Step
        Steps to leave out.
    given : mapping of onnx_ir.Node to QuantizedTensor, optional
        Weights that the recipe has found already, and the model's biases with them: they are only held
        against those of the recipe ``fgq``.

    Returns
    -------
    Refined
    """
    originals = {
        layer.name: find_bias(layer) for layer in find_layers(float_model) if isinstance(layer, Layer)
    }
    float_nodes = {node.name: node for node in float_model.graph}
    replaced: dict[ir.Node, Replacement] = {}
    quantized, exact = Prefix(model, feeds, replaced), Prefix(float_model, feeds, {})
    found = Refined({}, [], {})
    for _, stage in groupby(tasks, key=lambda task: task.layer.activation):
        members = list(stage)
        # Past finished layers too, in the same pieces: onnxruntime rounds otherwise in others.
        quantized.advance(members[0].layer.node)
        exact.advance(float_nodes[members[0].layer.name])
        for task in members:
            progress(len(found.weights), len(tasks))
            layer = task.layer
            finished = None if checkpoint is None else checkpoint.read(layer, task.scheme)
            if finished is None:
                float_node = float_nodes[layer.name]
                observed = observe_layer(layer, float_model, float_node, quantized, exact, without)
                measure = partial(distance, model, layer, quantized, exact, observed)
                fitting = _Fitting(task, observed, without, originals[layer.name])
                found_before = None if given is None else given[layer.node]
                finished = _refine(fitting, recipe, measure, found_before)
                if checkpoint is not None:
                    checkpoint.write(layer, finished)
            bias = find_bias(layer)
            if bias is not None and finished.bias is not None:
                bias.write(model.graph, finished.bias)
            found.warnings.extend(finished.warnings)
            found.weights[layer.node] = finished.weight
            if finished.check is not None:
                found.checks[layer.node] = finished.check
            replaced[layer.node] = Replacement(layer.weight_index, finished.weight.dequantize())
    return found


def _complaints(layer: Layer, observed: Observed) -> Iterator[str]:
    K = observed.train.gram.shape[1]
    if observed.train.positions < K:
        yield (
            f"{layer.name}: calibrated on {observed.train.positions} positions for {K} inputs; "
            "more samples would serve it better"
        )
    dead = int(np.count_nonzero(np.diagonal(observed.train.gram, axis1=1, axis2=2) == 0))
    if dead:
        yield f"{layer.name}: {dead} of its inputs were always zero; their weights were not calibrated"
    elif observed.train.is_constant:
        yield f"{layer.name}: its inputs were always the same; its weights were not calibrated"


def _obstacle(observed: Observed) -> str | None:
    """Return what keeps data from choosing weights, if anything does."""
    if not observed.is_finite:
        return "its inputs or outputs are too large for sums of their squares"
    if not observed.train.positions:
        return "no values reached it"
    if not observed.held_out.positions:
        return "one position says nothing of others"
    return None


def _refine(
    fitting: _Fitting,
    recipe: Recipe,
    measure: Callable[[QuantizedTensor, Float], Distance],
    given: QuantizedTensor | None,
) -> Finished:
    """Return a layer's weight and corrected bias, no output of which is farther than by the recipe fgq."""
    name = fitting.layer.name
    warnings = [] if given is not None else list(_complaints(fitting.layer, fitting.observed))
    obstacle = _obstacle(fitting.observed)
    if obstacle is not None:
        if recipe is not Recipe.FGQ:
            warnings.append(f"{name}: its weights stay the nearest: {obstacle}")
        return Finished(fitting.tensor(fitting.nearest().rows), fitting.original, tuple(warnings), None)
    plain = fitting.fit(Recipe.FGQ)
    if recipe is Recipe.FGQ:
        return Finished(fitting.tensor(plain.rows), plain.bias, tuple(warnings), None)
    chosen = fitting.fit(recipe) if given is None else fitting.as_it_is(given)
    found, other = (measure(fitting.tensor(fit.rows), fitting.shift(fit)) for fit in (chosen, plain))
    # Weights that were trained together lose what they gained row by row.
    farther = found.is_farther(other, together=fitting.grouping.shared or given is not None)
    kept = fitting.mixed(chosen, farther, plain)
    power = float(found.power.sum()) or 1.0
    before, after = float(found.own.sum()), float(np.where(farther, other.own, found.own).sum())
    if farther.any() and before > NOTED * after:
        warnings.append(
            f"{name}: {np.count_nonzero(farther)} of its {len(farther)} outputs are as the recipe fgq has "
            f"them, since {recipe} was farther from the float network's on all calibration data: the "
            f"layer's relative squared error is {after / power:.2g}, and was {before / power:.2g}"
        )
    check = LayerCheck(
        error=after / power,
        nearest_error=float(other.own.sum()) / power,
        reverted=int(np.count_nonzero(farther)),
    )
    return Finished(fitting.tensor(kept.rows), kept.bias, tuple(warnings), check)


class _Fit(NamedTuple):
    """Rows of a layer, and its corrected bias; None where it keeps its own."""

    rows: Rows
    bias: Single | None


class _Fitting:
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

    def nearest(self) -> _Fit:
        """Return the layer as it is without data."""
        rows = Rows(*(np.concatenate(fields) for fields in zip(*self._nearest, strict=True)))
        return _Fit(rows, self.original)

    def as_it_is(self, tensor: QuantizedTensor) -> _Fit:
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
        return _Fit(rows, None if self._place is None else self._place.values)

    def fit(self, recipe: Recipe) -> _Fit:
        """Return the layer as a recipe has it."""
        bias = None if Step.BIAS in self._without else self._place
        if recipe is Recipe.FGQ and self._task.layer.op_type != "Conv":
            bias = None  # its statistics are those of batch normalization
        train, held_out = self.observed.train, self.observed.held_out
        if bias is not None:  # errors on held-out data are those with the bias that the others want
            train, held_out = train.centred(self._matrices), held_out.centred(self._matrices, at=train)
        if recipe is Recipe.FGQ:
            parts = self._matched(train) if bias is not None else self._nearest
        else:
            matched = self._matched(train) if self._task.layer.op_type == "Conv" and bias is not None else []
            parts = list(self._calibrated(recipe, train, held_out, matched))
        rows = Rows(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))
        return _Fit(rows, None if bias is None else self._corrected(bias, rows))

    def _matched(self, train: Moments) -> list[Rows]:
        return [
            recipes.matched(rows, train.of(c), self.grouping, bound)
            for c, (rows, bound) in enumerate(zip(self._nearest, self._least, strict=True))
        ]

    def _calibrated(
        self, recipe: Recipe, train: Moments, held_out: Moments, matched: Sequence[Rows]
    ) -> Iterator[Rows]:
        propose = {Recipe.CALIBRATED: recipes.calibrated, Recipe.OMSE: recipes.rescaled}[recipe]
        scheme, without = self._task.scheme, self._without
        problems = solve(self._matrices, train, held_out, keep_weights=Step.TARGET in without)
        for c, (rows, problem, bound) in enumerate(zip(self._nearest, problems, self._least, strict=True)):
            proposals = propose(problem, self.grouping, scheme, bound, without)
            every = chain(matched[c : c + 1], proposals)
            yield recipes.best_of(rows, every, held_out.of(c), self.grouping)

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

    def shift(self, fit: _Fit) -> Float:
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

    def mixed(self, chosen: _Fit, farther: NDArray[np.bool_], plain: _Fit) -> _Fit:
        """Return a fit with some of its rows, and their biases, as another has them."""
        rows = chosen.rows.where(farther, plain.rows)
        if self._place is None or (chosen.bias is None and plain.bias is None):
            return _Fit(rows, None)
        return _Fit(rows, np.where(farther, self._values(plain), self._values(chosen)))

    def _values(self, fit: _Fit) -> Single:
        """Return the bias of a layer that has a place for one."""
        found = self.original if fit.bias is None else fit.bias
        assert found is not None
        return found
