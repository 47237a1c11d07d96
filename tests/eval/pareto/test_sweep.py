"""Jobs that train and measure, here and on a Dask cluster, and what becomes of their results."""

import csv
import shutil

import numpy as np
import pytest
from distributed import LocalCluster
from typer.testing import CliRunner

from fgq.cli import app
from fgq.errors import ConfigError, DataError
from fgq.eval.bench.model_timing import Latency
from fgq.eval.characters import Split
from fgq.eval.pareto import job as jobs
from fgq.eval.pareto import latency, study, sweep, table
from fgq.eval.pareto.costs import Costs
from fgq.eval.pareto.images import read
from fgq.eval.pareto.job import Job, Result
from fgq.eval.pareto.points import PRECISIONS, Plan, Point, Recipe
from fgq.eval.study import kept

RECIPE = Recipe(steps=3, batch=8, rate=1e-3, images=24)
SMALL = {"widths": (0.0625,), "depths": (), "seeds": 1, "recipe": RECIPE}
TINY = Plan(precisions=("float",), **SMALL | {"seeds": 2})


def silent(stage, done, total):
    """Show no progress."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images of noise to train on, and a small test set."""
    rng = np.random.default_rng(0)
    labels = np.arange(RECIPE.images) % 128
    np.save(tmp_path / f"images.{RECIPE.images}.npy", rng.integers(0, 256, (24, 32, 32), np.uint8))
    np.save(tmp_path / f"labels.{RECIPE.images}.npy", labels)
    test = Split(rng.random((16, 1, 32, 32), np.float32), np.arange(16))
    for module, name in ((jobs, "load"), (latency, "load_images")):
        monkeypatch.setattr(module, name, lambda split: test)
    return tmp_path


def result(point, **values):
    costs = Costs(quadratic=8.0, linear=4.0, memory=2.0, multiplications=1.0, additions=3.0)
    return Result(**{"point": point, "train": 0.5, "test": 0.25, "costs": costs, "seconds": 1.0} | values)


def keep(plan, folder, tests):
    """Leave results as if the plan's points were trained, except those without a value."""
    for found, test in zip(sweep.jobs_of(plan, folder), tests, strict=True):
        if test is not None:
            found.model.touch()
            kept.keep(found.result, result(found.point, test=test))


FAST = ("float", "w4a4", "n64a8")


@pytest.mark.parametrize(
    "precision",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in PRECISIONS],
)
def test_every_precision_is_trained_and_measured(folder, precision):
    (found,) = sweep.jobs_of(Plan(precisions=(precision,), **SMALL), folder)
    made = found.run()
    assert 0 <= made.test <= 1
    assert 0 <= made.train <= 1
    layers = made.costs
    assert layers.multiplications > 0
    bits = {"float": 32 * 32, "w8a8": 8 * 8}.get(precision)
    if bits is not None:
        assert layers.quadratic == bits * layers.multiplications
    assert (layers.additions > layers.multiplications) == precision.startswith(("n", "tied"))
    assert found.is_done
    assert not list(folder.glob("points/*.training"))


def test_a_job_that_was_stopped_goes_on_from_its_checkpoint(folder, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    for path in folder.glob("*.npy"):
        shutil.copy(path, other)
    point = Point(width=0.0625, depth=0, precision="float", seed=1)
    whole, stopped = (Job(point=point, recipe=RECIPE, folder=place) for place in (folder, other))
    for found in (whole, stopped):
        found.model.parent.mkdir()
    whole.run()

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "export_float", stop)
        with pytest.raises(KeyboardInterrupt):
            stopped.run()
    assert not stopped.is_done
    steps = []
    train = jobs.train
    monkeypatch.setattr(
        jobs, "train", lambda *given, **options: steps.append(options["resume"]) or train(*given, **options)
    )
    stopped.run()
    assert steps == [True]
    assert stopped.model.read_bytes() == whole.model.read_bytes()


def test_a_cluster_of_two_workers_trains_what_one_process_does(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for path in folder.glob("*.npy"):
        shutil.copy(path, other)
    # Workers that are threads share this process's small test set.
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        sweep.run(TINY, folder, silent, backend=sweep.Backend.DASK, scheduler=cluster.scheduler_address)
    stages = []
    sweep.run(TINY, other, lambda stage, done, total: stages.append((stage, done, total)))
    assert stages == [(sweep.OVERALL, done, 2) for done in range(3)]
    for here, there in zip(sweep.jobs_of(TINY, folder), sweep.jobs_of(TINY, other), strict=True):
        assert here.model.read_bytes() == there.model.read_bytes()
        assert (here.run().test, here.run().costs) == (there.run().test, there.run().costs)


def test_finished_points_are_not_trained_again(folder, monkeypatch):
    keep(TINY, folder, [0.5, 0.25])
    monkeypatch.setattr(Job, "_measured", lambda *given: pytest.fail("it was trained again"))
    sweep.run(TINY, folder, silent)
    assert [found.test for found in sweep.finished(sweep.jobs_of(TINY, folder))] == [0.5, 0.25]
    changed = Plan(**SMALL | {"recipe": Recipe(steps=4, batch=8, images=24)})
    assert sweep.finished(sweep.jobs_of(changed, folder)) == []


def test_a_scheduler_goes_with_dask_and_must_be_there(tmp_path):
    with pytest.raises(ConfigError, match="wanted an address with dask alone"):
        sweep.run(TINY, tmp_path, silent, scheduler="tcp://127.0.0.1:1")
    with pytest.raises(ConfigError, match="wanted an address with dask alone"):
        sweep.run(TINY, tmp_path, silent, backend=sweep.Backend.DASK)


def test_points_come_small_networks_first():
    plan = Plan(widths=(1.0, 0.25), depths=(3,), depth_width=0.5, precisions=("float", "w4a4"), seeds=2)
    assert [point.name for point in plan.points][:4] == [
        "width0.25.depth0.float.seed0",
        "width0.25.depth0.w4a4.seed0",
        "width0.25.depth0.float.seed1",
        "width0.25.depth0.w4a4.seed1",
    ]
    assert [(p.width, p.depth) for p in plan.points[4::4]] == [(0.5, 3), (1.0, 0)]


@pytest.mark.parametrize(
    "options",
    [{"precisions": ("w3a3",)}, {"widths": (0.0,)}, {"depths": (-1,)}, {"seeds": 0}, {"precisions": ()}],
    ids=str,
)
def test_a_plan_that_cannot_be_is_refused(options):
    with pytest.raises(ConfigError):
        Plan(**options)


def test_seeds_are_joined_and_the_dominating_precision_is_named(folder):
    plan = Plan(precisions=("float", "w4a4"), **SMALL | {"seeds": 2})
    keep(plan, folder, [0.5, 0.6, 0.7, None])
    found = study.collect(plan, folder)
    exact, quantized = found.networks
    assert (exact.seeds, exact.test, quantized.seeds, quantized.deviation) == (2, 0.6, 1, None)
    assert exact.deviation == pytest.approx(0.02**0.5)  # of 0.5 and 0.7
    assert quantized.gap == pytest.approx(-0.1)
    assert found.missing == ("width0.0625.depth0.w4a4.seed1",)
    assert set(found.dominance) == set(table.COSTS) - {"milliseconds"}
    assert found.dominance["memory"] == {"float": 0.5, "w4a4": 0.5}  # equal costs and accuracies
    lines = table.statements({"memory": {"float": 0.25, "w4a4": 0.75}})
    assert lines == ["memory, bits: w4a4 dominates with 75 % of the range; then float 25 %"]


def test_the_command_writes_what_is_finished(folder):
    plan = Plan(**SMALL | {"recipe": Recipe(steps=3, batch=8, rate=1e-3, images=24)})
    keep(plan, folder, [0.5] * 8 + [None])
    options = "--widths 0.0625 --seeds 1 --steps 3 --batch 8 --rate 0.001 --images 24 --finished".split()
    done = CliRunner().invoke(app, ["pareto", *options, "--depths", "", "-o", str(folder)])
    assert done.exit_code == 0, done.output
    assert "not finished: 1 points, the first width0.0625.depth0.tied64a8.seed0" in done.output
    with (folder / "pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["precision"] for row in rows] == [*PRECISIONS][:8]
    assert {row["quadratic_front"] for row in rows} == {"yes"}  # all alike
    assert {row["milliseconds_front"] for row in rows} == {"no"}
    assert (folder / "pareto.svg").read_text().startswith("<?xml")
    assert (folder / "pareto.png").stat().st_size


def test_nothing_finished_and_damaged_images_are_refused(folder):
    with pytest.raises(DataError, match="found no finished point"):
        study.collect(TINY, folder)
    np.save(folder / "images.24.npy", np.zeros((24, 8, 8), np.uint8))
    with pytest.raises(DataError, match=r"wanted uint8\[24, 32, 32\]"):
        read(folder, 24)
    (folder / "images.24.npy").write_bytes(b"PK")
    with pytest.raises(DataError, match="wanted rendered images"):
        read(folder, 24)


@pytest.mark.parametrize(
    "precisions", [("float",), pytest.param(("float", "n64a8"), marks=pytest.mark.slow)], ids="+".join
)
def test_latencies_are_kept_by_network(folder, monkeypatch, precisions):
    plan = Plan(precisions=precisions, **SMALL)
    found = sweep.jobs_of(plan, folder)
    sweep.run(plan, folder, silent)

    def once(functions, progress):
        for function in functions.values():
            function()
        return {name: Latency(2e-3, 3e-3, False) for name in functions}

    monkeypatch.setattr(latency, "measure_latencies", once)
    made = latency.measure(found, folder, silent)
    assert made == latency.read(folder)
    assert made.milliseconds == dict.fromkeys([job.point.network for job in found], 2.0)
