"""All points of the study, trained side by side on this machine or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgq.errors import ConfigError, OutputError
from fgq.eval.pareto.images import render
from fgq.eval.pareto.points import Plan
from fgq.eval.torch_export import require
from fgq.support.progress import Progress

if TYPE_CHECKING:
    from fgq.eval.pareto.job import Job, Result

OVERALL = "points"
"""The stage that counts finished points."""


class Backend(StrEnum):
    """What runs the jobs."""

    LOKY = "loky"
    """Processes of this machine."""
    DASK = "dask"
    """The workers of a Dask cluster."""


def jobs_of(plan: Plan, folder: Path) -> list[Job]:
    """Return the jobs of a plan's points, in its order, and make their folder.

    Parameters
    ----------
    plan : Plan
    folder : Path

    Raises
    ------
    ConfigError
        If PyTorch is not installed.
    OutputError
        If the folder cannot be made.
    """
    require("torch", "train")
    from fgq.eval.pareto.job import Job

    try:
        (folder / "points").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from None
    return [Job(point=point, recipe=plan.recipe, folder=folder.resolve()) for point in plan.points]


def finished(jobs: Sequence[Job]) -> list[Result]:
    """Return what the finished jobs gave."""
    return [job.run() for job in jobs if job.is_done]


def run(
    plan: Plan,
    folder: Path,
    progress: Progress,
    *,
    workers: int = 1,
    backend: Backend = Backend.LOKY,
    scheduler: str | None = None,
) -> None:
    """Train all points of a plan that are not finished yet, each in a job of its own.

    Jobs travel to a cluster as joblib and Dask write them, as pickles: trust it as this machine.

    Parameters
    ----------
    plan : Plan
    folder : Path
        Keeps images, checkpoints, models and results. On a cluster all workers reach it under this path.
    progress : callable
        Called as ``progress(stage, done, total)``, with the stage `OVERALL` after each point.
    workers : int
        Jobs at a time, each on one thread; on a cluster its workers decide.
    backend : Backend
    scheduler : str, optional
        The address of the Dask cluster's scheduler.

    Raises
    ------
    ConfigError
        If a package is not installed, or the backend and the scheduler do not go together.
    FgqError
        If a job fails.
    """
    if (backend is Backend.DASK) != (scheduler is not None):
        found = "none" if scheduler is None else scheduler
        raise ConfigError(f"scheduler: found {found} for {backend}, wanted an address with dask alone")
    joblib = require("joblib", "scale")
    jobs = jobs_of(plan, folder)
    missing = [job for job in jobs if not job.is_done]
    if missing:
        render(folder, plan.recipe.images, progress)
    count = workers if scheduler is None else -1  # all that the cluster has
    # Parallel itself does not know the Dask backend; parallel_config registers it.
    with _cluster(scheduler), joblib.parallel_config(backend=backend.value, n_jobs=count):
        parallel = joblib.Parallel(
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch="all" if scheduler else "2 * n_jobs",
        )
        progress(OVERALL, len(jobs) - len(missing), len(jobs))
        results = parallel(joblib.delayed(_run)(job) for job in missing)
        for done, _ in enumerate(results, len(jobs) - len(missing) + 1):
            progress(OVERALL, done, len(jobs))


def _run(job: Job) -> None:
    job.run()


@contextmanager
def _cluster(scheduler: str | None) -> Iterator[Any]:
    """Connect to a scheduler for the duration, if one is given."""
    if scheduler is None:
        yield None
        return
    distributed = require("distributed", "scale")
    try:
        client = distributed.Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise ConfigError(f"scheduler: found no Dask cluster at {scheduler} ({error})") from None
    with client:
        yield client
