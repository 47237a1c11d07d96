"""The study of the FGQ paper: what the group size N costs and saves, on any model and data.

Mellempudi et al., "Ternary neural networks with fine-grained quantization" (2017, arXiv 1705.01462),
sections 3 and 4: a small N keeps accuracy, a large one leaves fewer multiplications, of which one remains for
each group. At N = 1 every weight has its own scale, and no multiplication is saved.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from fgq.config import Activations, ConversionConfig, Recipe
from fgq.conversion.pipeline import convert_file
from fgq.converters.survey import model_bytes
from fgq.errors import ConfigError, OutputError
from fgq.eval.datasets import calibration_data, open_dataset
from fgq.eval.evaluation import evaluate
from fgq.eval.study.kept import data_identity, digest, kept, model_digest
from fgq.eval.study.latency import ENGINES, FLOAT, kept_times
from fgq.eval.study.plot import draw_group_size
from fgq.eval.study.rows import Costs, Qualities, Quality, Row, Study, write_csv
from fgq.format import onnx_file
from fgq.support.progress import Progress

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The group sizes that are tried where none are asked for."""

OVERALL = "models"
"""The stage that counts what is done of the whole study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to study.

    Parameters
    ----------
    model : Path
        A float model.
    data : str
        What to measure on, as for `fgq.eval.datasets.open_dataset`.
    calibration : str, optional
        What to calibrate with; if not given, the same. A data set known by name has a part for that, a file
        or folder is then used for both, with a warning.
    sizes : tuple of int
        The group sizes, in any order.
    recipes : tuple of Recipe
    activations : Activations
    limit : int, optional
        Measure on so many samples only, the first ones.
    threads : int
        Of the timings.

    Raises
    ------
    ConfigError
        If there are no sizes or recipes, or a size or the threads are below 1.
    """

    model: Path
    data: str
    calibration: str | None = None
    sizes: tuple[int, ...] = SIZES
    recipes: tuple[Recipe, ...] = (Recipe.CALIBRATED,)
    activations: Activations = Activations.INT8
    limit: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("sizes", "recipes"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: found none, wanted at least one")
        if self.threads < 1:
            raise ConfigError(f"threads: found {self.threads}, wanted at least 1")
        for size in self.sizes:
            ConversionConfig(group_size=size)

    @property
    def configs(self) -> list[ConversionConfig]:
        """The conversions, each once."""
        return [
            ConversionConfig(recipe=recipe, group_size=size, activations=self.activations)
            for recipe in dict.fromkeys(self.recipes)
            for size in sorted(set(self.sizes))
        ]


def study_group_size(plan: Plan, folder: Path, progress: Progress) -> Study:
    """Convert, measure and time a model at every group size.

    Parameters
    ----------
    plan : Plan
    folder : Path
        Made where it is missing. Converted models, what was measured and undisturbed timings are kept in its
        folder ``kept`` and found again.
    progress : callable
        Called as ``progress(stage, done, total)``; with the stage `OVERALL` after each model.

    Raises
    ------
    FgqError
        If the model, the data or an option cannot be used, or the folder cannot be written.
    """
    # Refused before the work.
    open_dataset(plan.data, plan.model, "test")
    open_dataset(plan.calibration or plan.data, plan.model, "calibration")
    if plan.calibration is None and Path(plan.data).exists():
        warnings.warn(
            f"{plan.data}: accuracy is measured on the samples that calibrate; give others with "
            "--calibration-data",
            stacklevel=2,
        )
    kept_folder = folder / "kept"
    try:
        kept_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{kept_folder}: cannot be made ({error.strerror})") from None
    model = model_digest(plan.model)
    trials = [_Trial.of(plan, config, kept_folder, model) for config in plan.configs]
    missing, done = sum(not trial.is_done for trial in trials), 0
    found = []
    for trial in trials:
        progress(OVERALL, done, missing + 1)
        done += not trial.is_done
        found.append(trial.run(progress))
    progress(OVERALL, done, missing + 1)
    size = model_bytes(plan.model, onnx_file.load(plan.model))
    times = kept_times(
        plan.model,
        {trial.converted.stem: trial.converted for trial in trials},
        plan.calibration or plan.data,
        plan.threads,
        kept_folder,
        progress,
    )
    progress(OVERALL, missing + 1, missing + 1)
    float_row = Row(
        recipe=None,
        group_size=None,
        costs=Costs.of_float(size),
        quality=found[0][1].exact,
        milliseconds=times.milliseconds[FLOAT],
    )
    return Study(
        model=plan.model.name,
        data=plan.data,
        activations=plan.activations.value,
        threads=plan.threads,
        batch=times.batch,
        engines=tuple(ENGINES),
        busy=times.busy,
        rows=(
            float_row,
            *(
                Row(
                    recipe=trial.config.recipe,
                    group_size=trial.config.group_size,
                    costs=costs,
                    quality=qualities.converted,
                    milliseconds=times.milliseconds[trial.converted.stem],
                )
                for trial, (costs, qualities) in zip(trials, found, strict=True)
            ),
        ),
    )


def write(study: Study, folder: Path) -> list[Path]:
    """Write the table and the plot of a study, and return their paths.

    Parameters
    ----------
    study : Study
    folder : Path

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    OutputError
        If a file cannot be written.
    """
    table, *images = (folder / f"group-size.{suffix}" for suffix in ("csv", "png", "svg"))
    write_csv(study, table)
    draw_group_size(study, images)
    return [table, *images]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """One conversion, and the files that keep what it gave."""

    plan: Plan
    config: ConversionConfig
    converted: Path
    costs: Path
    quality: Path

    @classmethod
    def of(cls, plan: Plan, config: ConversionConfig, folder: Path, model: str) -> _Trial:
        calibration = data_identity(plan.calibration or plan.data)
        conversion = digest(model=model, calibration=calibration, options=asdict(config))
        evaluation = digest(conversion=conversion, data=data_identity(plan.data), limit=plan.limit)
        name = f"{config.recipe}.N{config.group_size}"
        return cls(
            plan=plan,
            config=config,
            converted=folder / f"{name}.{conversion}.onnx",
            costs=folder / f"{name}.{conversion}.costs.json",
            quality=folder / f"{name}.{evaluation}.quality.json",
        )

    @property
    def is_done(self) -> bool:
        return all(path.exists() for path in (self.converted, self.costs, self.quality))

    def run(self, progress: Progress) -> tuple[Costs, Qualities]:
        """Convert and measure, or find what that gave."""
        name = f"{self.config.recipe} N={self.config.group_size}"

        def stage(what: str, done: int, total: int | None) -> None:
            progress(f"{name}: {what}", done, total)

        if not self.converted.exists():
            self.costs.unlink(missing_ok=True)
        costs = kept(self.costs, lambda: self._convert(stage), lambda plain: Costs(**plain))
        return costs, kept(self.quality, lambda: self._evaluate(stage), Qualities.from_dict)

    def _convert(self, progress: Progress) -> Costs:
        data = calibration_data(self.plan.calibration or self.plan.data, self.plan.model)
        return Costs.of(convert_file(self.plan.model, self.converted, self.config, data, progress))

    def _evaluate(self, progress: Progress) -> Qualities:
        plan = self.plan

        def stage(_: str, done: int, total: int | None) -> None:
            progress("measure", done, total)

        exact, converted = (
            Quality(samples=row.samples, measures=row.measures, difference=row.difference)
            for row in evaluate([plan.model, self.converted], plan.data, ["onnxruntime"], plan.limit, stage)
        )
        return Qualities(exact=exact, converted=converted)
