"""One point of the study: trained, written as a file, and that file measured."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fgq.config import ConversionConfig
from fgq.converters.survey import inspect
from fgq.data.array_checks import LABELS
from fgq.data.inputs import input_specs
from fgq.data.samples import as_samples
from fgq.eval.accuracy import top1
from fgq.eval.characters import load
from fgq.eval.characters.export import export as export_float
from fgq.eval.characters.finetuning import Images
from fgq.eval.characters.network import CharacterNet
from fgq.eval.characters.render import SIZE
from fgq.eval.pareto.costs import Costs, costs_of
from fgq.eval.pareto.images import read
from fgq.eval.pareto.points import FLOAT, PRECISIONS, Point, Recipe
from fgq.eval.study.kept import digest, kept
from fgq.format import onnx_file
from fgq.graph import ort
from fgq.train import export
from fgq.train.scratch import fold, prepare_from_scratch
from fgq.train.trainer import CHECKPOINT, Data, Schedule, train

TRAIN_SUBSET = 10_240
"""The first training images, on which training accuracy is measured; as many as there are test images."""

_SEEDING = threading.Lock()
"""Held while a network draws its first weights: threads of a Dask worker share PyTorch's generator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a point gave.

    Parameters
    ----------
    point : Point
    train, test : float
        Top-1 accuracy of the written file in onnxruntime, 0 to 1: on the first training images, and on the
        test images of `fgq.eval.characters`, whose fonts no training image shows.
    costs : Costs
    seconds : float
        Processor time of the training since it was last resumed, on one thread.
    """

    point: Point
    train: float
    test: float
    costs: Costs
    seconds: float

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Result:
        """Return what `dataclasses.asdict` was called on."""
        return cls(**plain | {"point": Point(**plain["point"]), "costs": Costs(**plain["costs"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A point with its recipe and the folder that keeps what becomes of it.

    Parameters
    ----------
    point : Point
    recipe : Recipe
    folder : Path
        Holds the training images, as `fgq.eval.pareto.images.render` wrote them.
    """

    point: Point
    recipe: Recipe
    folder: Path

    @property
    def _stem(self) -> Path:
        # The recipe and the point determine everything; so does the version of fgq, which digest adds.
        return self.folder / "points" / f"{self.point.name}.{digest(recipe=asdict(self.recipe))}"

    @property
    def model(self) -> Path:
        """The trained network's file."""
        return self._stem.with_name(f"{self._stem.name}.onnx")

    @property
    def result(self) -> Path:
        """The file that says what the point gave; it is there once the point is finished."""
        return self._stem.with_name(f"{self._stem.name}.json")

    @property
    def is_done(self) -> bool:
        """Whether the point is finished."""
        return self.result.exists() and self.model.exists()

    def run(self, threads: int = 1) -> Result:
        """Train, write and measure; go on from where it was stopped, or find what it gave.

        Parameters
        ----------
        threads : int
            Of PyTorch and onnxruntime.
        """
        if not self.model.exists():
            self.result.unlink(missing_ok=True)
        torch.set_num_threads(threads)
        return kept(self.result, lambda: self._measured(threads), Result.from_dict)

    def _measured(self, threads: int) -> Result:
        began = time.thread_time()
        images, labels = read(self.folder, self.recipe.images)
        training = self._stem.with_name(f"{self._stem.name}.training")
        self._train(images, labels, training)
        seconds = time.thread_time() - began
        subset = images[:TRAIN_SUBSET].astype(np.float32) / np.float32(255)
        test = load("test")
        result = Result(
            point=self.point,
            train=_accuracy(self.model, subset, labels[:TRAIN_SUBSET], threads),
            test=_accuracy(self.model, test.images, test.labels, threads),
            costs=costs_of(
                inspect(self.model, ConversionConfig()).layers, converted=self.point.precision != FLOAT
            ),
            seconds=seconds,
        )
        shutil.rmtree(training)
        return result

    def _train(self, images: NDArray[np.uint8], labels: NDArray[np.int64], folder: Path) -> None:
        """Train and write the network."""
        recipe, precision = self.recipe, PRECISIONS[self.point.precision]
        with _SEEDING:
            torch.manual_seed(self.point.seed)
            network = CharacterNet(self.point.width, self.point.depth)
        example = (torch.zeros(2, 1, SIZE, SIZE),)
        quantized = None
        if precision.weights is not None and precision.activations is not None:
            quantized = prepare_from_scratch(
                network,
                precision.weights,
                example,
                activations=precision.activations,
                warm_up=recipe.settled,
            )
        student: nn.Module = network if quantized is None else quantized
        student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        schedule = Schedule(
            steps=recipe.steps,
            batch=recipe.batch,
            rate=recipe.rate,
            warm_up=recipe.warm_up,
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            ema=0.0,
            seed=self.point.seed,
            bfloat16=recipe.bfloat16,
            compile=recipe.compile,
        )
        data = Images(images, labels)
        train(student, Data(data, data), schedule, folder, resume=(folder / CHECKPOINT).is_file())
        if quantized is None:
            export_float(network, self.model)
        else:
            export(fold(quantized), self.model, example, input_names=("image",), output_names=("logits",))


def _accuracy(model: Path, images: NDArray[np.float32], labels: NDArray[np.int64], threads: int) -> float:
    session = ort.open_session(model, model.name, threads=threads)
    inputs = input_specs(onnx_file.load(model))
    samples = as_samples({"image": images, LABELS: labels}, inputs, where=model.name)
    return top1({model.name: session}, samples)[model.name].top1.value
