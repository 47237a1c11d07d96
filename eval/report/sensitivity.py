"""How much each layer, quantized alone as in the converted model, changes what the model gives.

Every figure is a distance of outputs from the float model's. For classifiers it is the divergence of
Kullback and Leibler from the float model's probabilities p to the other's q, the mean over the samples of
``sum over classes of p ln(p / q)``, in nats; else the relative squared error of all float outputs,
``sum (y' - y)^2 / sum y^2`` (`fgq.format.outputs.relative_error`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from fgq.converters.biases import find_bias
from fgq.converters.original import Original
from fgq.converters.self_check import onnxruntime_session
from fgq.data.feed import Feed
from fgq.errors import DataError, ModelError, first_line
from fgq.eval.report.layer_rows import QuantizedLayer
from fgq.format.outputs import relative_error
from fgq.graph.queries import constant
from fgq.recipes.pieces import Piece, Prefix, Replacement, Values

_SMALLEST = float(np.finfo(np.float32).tiny)


class Sensitivity:
    """What the float model gives on some samples, and how far others are from it.

    Parameters
    ----------
    model : onnx_ir.Model
        The prepared float model.
    feeds : sequence of feed
        Samples, batch by batch.
    classifier : bool
        Whether the first output holds a score per class.
    """

    def __init__(self, model: ir.Model, feeds: Sequence[Feed], *, classifier: bool) -> None:
        self._model = model
        self._feeds = feeds
        self._classifier = classifier
        self._nodes = list(model.graph)
        self._outputs = [str(value.name) for value in model.graph.outputs]
        run = Piece(model, self._nodes, [name for name in self._outputs if name not in feeds[0]])
        self._exact = [run(dict(feed)) for feed in feeds]

    def of_layers(
        self,
        layers: Sequence[QuantizedLayer],
        converted: ir.Model,
        progress: Callable[[int, int], None],
    ) -> dict[ir.Node, float | None]:
        """Measure each layer alone: its weights, its bias and its input as in the converted model.

        Parameters
        ----------
        layers : sequence of QuantizedLayer
            In graph order.
        converted : onnx_ir.Model
        progress : callable
            Called as ``progress(done, total)``.

        Returns
        -------
        dict of onnx_ir.Node to float or None
            By the layer's node in the float model; None for those in subgraphs, which cannot be run alone.

        Raises
        ------
        FgqError
            If a layer of the converted model cannot be put into the float one, or does not run there.
        """
        prefix = Prefix(self._model, self._feeds, {})
        others = {str(node.name): node for node in converted.graph}
        computed = {str(value.name) for node in self._nodes for value in node.outputs}
        known = computed | {str(value.name) for value in self._model.graph.inputs}
        found: dict[ir.Node, float | None] = {}
        for done, pair in enumerate(layers):
            progress(done, len(layers))
            layer = pair.layer
            if layer.in_subgraph:
                found[layer.node] = None
                continue
            prefix.advance(layer.node)
            rest = self._nodes[self._nodes.index(layer.node) + 1 :]
            made = {str(value.name) for node in (layer.node, *rest) for value in node.outputs}
            run = Piece(
                self._model,
                [*_with_sources(pair, known), *rest],
                [name for name in self._outputs if name in made],
                {pair.node: Replacement(pair.weight_index, pair.weight.dequantize())} | _bias(pair, others),
            )
            found[layer.node] = self.distance([run(values) for values in prefix.batches])
        return found

    def of_model(self, converted: ir.Model, original: Original) -> float:
        """Measure the whole converted model against the model that came in, before any pass.

        Parameters
        ----------
        converted : onnx_ir.Model
        original : Original

        Raises
        ------
        ModelError
            If onnxruntime refuses it.
        DataError
            If it cannot run on the samples.
        """
        found = self._outputs_of(onnxruntime_session(converted, "converted model"), "converted model")
        return self.distance(found, self._outputs_of(original.open().session, "float model"))

    def _outputs_of(self, session: InferenceSession, name: str) -> list[Values]:
        names = [value.name for value in session.get_outputs() if value.name in self._exact[0]]
        found: list[Values] = []
        for feed in self._feeds:
            try:
                found.append(dict(zip(names, session.run(names, dict(feed)), strict=True)))
            except Exception as error:  # onnxruntime's exceptions share no other base
                raise DataError(f"{name}: cannot run on the data ({first_line(error)})") from None
        return found

    def distance(self, found: Sequence[Values], exact: Sequence[Values] | None = None) -> float:
        """Return how far outputs are from the float model's; 0 where they do not depend on what changed.

        Parameters
        ----------
        found : sequence of dict of str to ndarray
            The outputs, batch by batch; those that are missing did not change.
        exact : sequence of dict of str to ndarray, optional
            Those of the float model, by default of the prepared one.
        """
        first, exact = self._outputs[0], exact or self._exact
        with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity is NaN, and said so
            if not self._classifier:
                return relative_error(exact, found)
            if first not in found[0]:
                return 0.0
            return divergence(_rows(exact, first), _rows(found, first))


def divergence(scores: NDArray[np.floating], others: NDArray[np.floating]) -> float:
    """Return the mean divergence ``sum of p ln(p / q)`` of Kullback and Leibler, in nats.

    Parameters
    ----------
    scores, others : ndarray of float, shape (samples, classes)
        What gives p and q. Rows of `scores` that are not negative and add up to 1 say that both hold
        probabilities; else both hold logits (or logarithms of probabilities), of which the softmax is taken.
    """
    sums = scores.sum(axis=1, dtype=np.float64)
    are_probabilities = bool((scores >= 0).all() and np.allclose(sums, 1.0, atol=1e-3))
    log_p, log_q = (_log_probabilities(each, are_probabilities) for each in (scores, others))
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())


def _log_probabilities(scores: NDArray[np.floating], are_probabilities: bool) -> NDArray[np.float64]:
    exact = scores.astype(np.float64)
    if are_probabilities:
        return np.log(np.maximum(exact, _SMALLEST))
    shifted = exact - exact.max(axis=1, keepdims=True)
    logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms


def _rows(batches: Sequence[Values], name: str) -> NDArray[Any]:
    return np.concatenate([batch[name].reshape(len(batch[name]), -1) for batch in batches])


def _with_sources(pair: QuantizedLayer, known: set[str]) -> list[ir.Node]:
    """Return a node of the converted model behind those that quantize its input and give its bias.

    They are followed back to values that the float model computes too; the weight is not.
    """
    name = pair.layer.name
    if str(pair.node.outputs[0].name) != str(pair.layer.output.name):
        raise ModelError(
            f"converted model: {name}: found the result {pair.node.outputs[0].name!r}, wanted "
            f"{pair.layer.output.name!r} as in the float model, from which it must have been converted"
        )

    def sources(node: ir.Node, inputs: Sequence[ir.Value | None]) -> Iterator[ir.Node]:
        for value in inputs:
            if value is None or str(value.name) in known or constant(value) is not None:
                continue
            producer = value.producer()
            if producer is None:
                raise ModelError(
                    f"converted model: {name}: found the operand {value.name!r}, wanted one that the float "
                    "model has"
                )
            yield from sources(producer, producer.inputs)
        yield node

    inputs = [value for index, value in enumerate(pair.node.inputs) if index != pair.weight_index]
    return list(dict.fromkeys(sources(pair.node, inputs)))


def _bias(pair: QuantizedLayer, others: Mapping[str, ir.Node]) -> dict[ir.Node, Replacement]:
    """Return the bias of a MatMul in the converted model, where the graph has it: in an Add behind it."""
    bias = find_bias(pair.layer)
    if bias is None or bias.node is pair.layer.node or (other := others.get(str(bias.node.name))) is None:
        return {}
    found = constant(other.inputs[bias.place])
    if found is None or found.shape != bias.values.shape:
        return {}
    return {bias.node: Replacement(bias.place, found)}
