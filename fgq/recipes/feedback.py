r"""Second-order error feedback: groups are quantized in turn, and those that are still free make up for it.

Let ``H^{-1} = U^T U`` with U upper triangular, in the order of quantization. If the weights w of a block b
become q, the best change of all later weights, and what the block then costs, are

.. math:: w_\mathrm{later} \leftarrow w_\mathrm{later} - e\, U_{b,\mathrm{later}}, \quad
          \mathrm{cost} = \|e\|^2, \quad  e = (w - q) U_{bb}^{-1}

(optimal brain quantization, Frantar & Alistarh 2022, arXiv 2208.11580, section 4; in this form GPTQ,
Frantar et al. 2022, arXiv 2210.17323, algorithm 1). A block is one group of weights with one whole scale
alpha, chosen together for the least cost. Groups go in the order of falling mean diagonal of H, and so do the
weights inside a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fgq.recipes.codebook import Codebook
from fgq.recipes.moments import Float, Single
from fgq.recipes.rows import Grouping, Rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Elimination:
    """The order in which groups are quantized, and the factor U in this order.

    Parameters
    ----------
    groups : list of int
        The groups in order.
    places : list of ndarray of int
        The places along K of each group, in order.
    factor : ndarray of float32, shape (K, K)
        U.
    """

    groups: list[int]
    places: list[NDArray[np.intp]]
    factor: Single

    @classmethod
    def of(cls, hessian: Float, grouping: Grouping) -> Elimination:
        """Order the groups and factor the inverse of H.

        Parameters
        ----------
        hessian : ndarray of float64, shape (K, K)
        grouping : Grouping
        """
        diagonal = np.diag(hessian)
        places = [group.start + np.argsort(-diagonal[group], kind="stable") for group in grouping.slices]
        groups = np.argsort([-diagonal[place].mean() for place in places], kind="stable").tolist()
        places = [places[group] for group in groups]
        order = np.concatenate(places)
        # With H = R R^T and R upper triangular, U is the inverse of R.
        reverse = order[::-1]
        upper = np.linalg.cholesky(hessian[np.ix_(reverse, reverse)])[::-1, ::-1]
        factor = np.triu(np.linalg.inv(upper)).astype(np.float32)
        return cls(groups=groups, places=places, factor=np.ascontiguousarray(factor))


def feed_back(target: Float, elimination: Elimination, codebook: Codebook, row_scale: Float) -> Rows:
    """Quantize rows group by group.

    Parameters
    ----------
    target : ndarray of float64, shape (M, K)
    elimination : Elimination
    codebook : Codebook
    row_scale : ndarray of float64, shape (M,)
        Row scales, kept as they are.
    """
    factor = elimination.factor
    order = np.concatenate(elimination.places)
    weights = np.ascontiguousarray((target / row_scale[:, None])[:, order], np.float32)
    codes = np.empty(weights.shape, np.int8)
    alpha = np.empty((len(weights), len(elimination.groups)), np.uint8)
    start = 0
    for group, places in zip(elimination.groups, elimination.places, strict=True):
        stop = start + len(places)
        block, inside = weights[:, start:stop], factor[start:stop, start:stop]
        chosen, scale = codebook.nearest(block, inside)
        codes[:, places], alpha[:, group] = chosen, scale
        error = (block - chosen * scale[:, None]) @ np.linalg.inv(inside)
        weights[:, stop:] -= error @ factor[start:stop, stop:]
        start = stop
    return Rows(codes, alpha, row_scale)
