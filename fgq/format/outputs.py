"""What a network's outputs are, and how far others are from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.graph.queries import constant

Values = Mapping[str, NDArray[Any]]
Float = NDArray[np.float64]

_SCORES = frozenset(
    "Add Sub Mul Div Flatten Reshape Squeeze Unsqueeze Identity Cast Softmax LogSoftmax Transpose".split()
)
"""What may stand between a classifier's last matrix product and its output."""


def classifier_output(model: ir.Model, *, labelled: bool = False) -> str | None:
    """Return the output of a network that scores classes, None where it has no such output.

    The network has one output, float [batch, classes] but for axes of length 1, and that is a softmax, or
    comes from a matrix product with constant weights through nothing but changes of layout, scale, offset
    and softmax. An encoder that ends in a bare matrix product cannot be told from a classifier, and is
    taken for one; one that normalizes its result is not.

    Parameters
    ----------
    model : onnx_ir.Model
        Prepared (`fgq.converters.passes.prepare`).
    labelled : bool
        Whether its data have labels, one a sample; then one output of that shape will do.
    """
    if len(model.graph.outputs) != 1:
        return None
    output = model.graph.outputs[0]
    if output.shape is None or len(output.shape) < 2 or any(axis != 1 for axis in list(output.shape)[2:]):
        return None
    if labelled:
        return str(output.name)
    node = output.producer()
    softmax = False
    while node is not None and node.domain == "" and node.op_type in _SCORES:
        softmax = softmax or node.op_type in ("Softmax", "LogSoftmax")
        operands = node.inputs[:1] if node.op_type in ("Reshape", "Squeeze", "Unsqueeze") else node.inputs
        computed = [value for value in operands if value is not None and constant(value) is None]
        if len(computed) != 1:
            break
        node = computed[0].producer()
    ends_in_product = (
        node is not None
        and node.op_type in ("Gemm", "MatMul")
        and sum(constant(value) is None for value in node.inputs if value is not None) == 1
    )
    return str(output.name) if softmax or ends_in_product else None


def class_scores(values: NDArray[Any]) -> Float:
    """Return scores as [samples, classes]."""
    return values.reshape(len(values), -1).astype(np.float64)


def log_probabilities(scores: Float) -> Float:
    """Return the logarithms of probabilities, of scores that are logits, logarithms, or probabilities.

    Scores of which none is negative and whose sums are all 1 are probabilities already.

    Parameters
    ----------
    scores : ndarray of float64, shape (samples, classes)
    """
    if (scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, rtol=0, atol=1e-3):
        return np.log(np.maximum(scores, np.finfo(np.float32).tiny))
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: Float = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def divergence(exact: NDArray[Any], found: NDArray[Any]) -> Float:
    """Return the Kullback-Leibler divergence of each sample, ``sum_c p_c log(p_c / q_c)``, in nats.

    Parameters
    ----------
    exact, found : ndarray, shape (samples, classes)
        Scores of classes, as `log_probabilities` takes them: p of `exact`, q of `found`.

    Returns
    -------
    ndarray of float64, shape (samples,)
    """
    p, q = log_probabilities(class_scores(exact)), log_probabilities(class_scores(found))
    nats: Float = np.maximum(np.sum(np.exp(p) * (p - q), axis=1), 0.0)  # rounding may leave less
    return nats


def relative_error(exact: Sequence[Values], found: Sequence[Values]) -> float:
    """Return ``sum (y' - y)^2 / sum y^2`` of each float output, added up.

    Parameters
    ----------
    exact, found : sequence of mapping of str to ndarray
        Batch by batch, the outputs of both networks; those of `found` are looked at.
    """
    total = 0.0
    for name, first in found[0].items():
        if first.dtype.kind == "f":
            power = sum(_energy(values[name]) for values in exact)
            noise = sum(_energy(theirs[name] - mine[name]) for theirs, mine in zip(found, exact, strict=True))
            total += noise / power if power else 0.0
    return total


def _energy(values: NDArray[Any]) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))
