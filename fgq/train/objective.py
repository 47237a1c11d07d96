"""What training lowers, and what a network is judged by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgq.errors import ConfigError, DataError

_LEAST_LENGTH = 0.01
"""Of the mean squared length of a batch's vectors: a shorter one counts as if it were so long."""


class Objectives(StrEnum):
    """The objectives known by name."""

    LOGITS = "logits"
    EMBEDDINGS = "embeddings"


class Objective(Protocol):
    """A loss and a score; a person's own is given to `fgq.train.trainer.train`."""

    measure: str
    """What the score is called."""

    def loss(self, found: Tensor, labels: Tensor | None, wanted: Tensor | None) -> Tensor:
        """Return a scalar of the module's output, the labels, and the teacher's output."""

    def scores(self, found: Tensor, labels: Tensor | None, wanted: Tensor | None) -> Tensor:
        """Return one number for each sample, whose mean is the score."""


class Logits:
    """One logit per class: the labels' cross entropy, and the distance from the teacher.

    Parameters
    ----------
    distillation : float
        The share of the teacher, 0 to 1: temperature**2 times the Kullback-Leibler divergence from its
        softened outputs (Hinton et al. 2015, arXiv 1503.02531, section 2).
    temperature : float
    """

    measure = "top-1"

    def __init__(self, distillation: float, temperature: float) -> None:
        self.distillation, self.temperature = distillation, temperature

    def loss(self, found: Tensor, labels: Tensor | None, wanted: Tensor | None) -> Tensor:
        """Return the weighted sum of both losses."""
        share = 0.0 if wanted is None else self.distillation
        loss = found.new_zeros(())
        if share < 1.0:
            loss = (1 - share) * functional.cross_entropy(found, self._checked(labels, found))
        elif labels is not None:
            self._checked(labels, found)
        if wanted is None or share == 0.0:
            return loss
        T = self.temperature
        divergence = functional.kl_div(
            functional.log_softmax(found / T, -1),
            functional.log_softmax(wanted / T, -1),
            reduction="batchmean",
            log_target=True,
        )
        return loss + share * T**2 * divergence

    def scores(self, found: Tensor, labels: Tensor | None, wanted: Tensor | None) -> Tensor:
        """Return 1 where the largest logit is the label's, else 0."""
        return (found.argmax(1) == self._checked(labels, found)).float()

    @staticmethod
    def _checked(labels: Tensor | None, logits: Tensor) -> Tensor:
        if labels is None:
            raise DataError("label: found none, wanted one for each sample; or the objective 'embeddings'")
        classes = logits.shape[-1]
        bad = labels[(labels < 0) | (labels >= classes)]
        if bad.numel():
            raise DataError(
                f"label: found {int(bad[0])}, wanted 0..{classes - 1}, one of the model's classes"
            )
        return labels


class Embeddings:
    """One vector per sample, to have the direction of the teacher's; labels are not looked at."""

    measure = "cosine"

    def loss(self, found: Tensor, labels: Tensor | None, wanted: Tensor | None) -> Tensor:
        """Return the mean of ``1 - cosine``."""
        return 1 - self.scores(found, labels, wanted).mean()

    def scores(self, found: Tensor, labels: Tensor | None, wanted: Tensor | None) -> Tensor:
        """Return the cosine between each vector and the teacher's."""
        if wanted is None:
            raise ConfigError("objective: found 'embeddings' without a teacher, wanted the float network")
        return functional.cosine_similarity(found, wanted, dim=-1)


class Features:
    """The results of modules of one name in two networks, and how far they differ.

    A module's result on a batch is a vector at each place: along axis 1 of images, else along the last.

    Parameters
    ----------
    student, teacher : torch.nn.Module
    patterns : sequence of str
        Names of modules; ``*`` stands for any characters.

    Raises
    ------
    ConfigError
        If a pattern fits no module of both.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, patterns: Sequence[str]) -> None:
        # Of the student only leaves are called as modules.
        of_student = {name for name, module in student.named_modules() if not any(module.children())}
        of_teacher = {name for name, _ in teacher.named_modules()}
        self.names: list[str] = []
        for pattern in patterns:
            fitting = [n for n in sorted(of_student & of_teacher) if n and fnmatchcase(n, pattern)]
            if not fitting:
                raise ConfigError(
                    f"match: found no module {pattern!r} that student and teacher call, wanted names of "
                    f"layers, as {', '.join(sorted(of_student & of_teacher)[:3])}"
                )
            self.names += [name for name in fitting if name not in self.names]
        self._modules = (student, teacher)
        self._results: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note results of the modules meanwhile."""
        handles = [
            module.get_submodule(name).register_forward_hook(_keeper(results, name))
            for module, results in zip(self._modules, self._results, strict=True)
            for name in self.names
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def distance(self) -> Tensor:
        """Return the mean over modules and places of ``|s - t|^2 / |t|^2`` of the last batch."""
        found, wanted = self._results
        distances = [_relative_error(found[name].float(), wanted[name].float()) for name in self.names]
        return torch.stack(distances).mean()


def _keeper(results: dict[str, Tensor], name: str) -> Any:
    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        results[name] = output

    return keep


def _relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    axis = 1 if wanted.ndim > 3 else -1
    square = wanted.square().sum(axis)
    square = torch.maximum(square, _LEAST_LENGTH * square.mean())
    return ((found - wanted).square().sum(axis) / square).mean()
