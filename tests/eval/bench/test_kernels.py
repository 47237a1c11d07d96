import json
from dataclasses import fields, replace

import numpy as np
import pytest

from fgq.cli.display import as_json
from fgq.errors import KernelError
from fgq.eval.bench import baselines, kernels
from fgq.eval.bench.drawn_layers import draw_layer, prepare
from fgq.eval.bench.kernels import FULL_PLAN, Result, Row, Trial, Variant, bench_kernels, plan_of
from fgq.eval.bench.shapes import GEMM, LLM, RESNET50, Conv, MatMul
from fgq.kernels.products.reference import prepare as prepare_reference
from fgq.kernels.products.reference import sums as reference_sums

MATMUL = MatMul(rows=16, inputs=192, outputs=64)
CONV = Conv(size=6, channels=64, outputs=32, taps=3, count=2)
STEM = Conv(size=8, channels=3, outputs=16, taps=3, ternary=False)

ASKED = "op shape group_size activation_bits kernel tier threads ms gmacs baselines".split()


def silent(stage, done, total):
    pass


@pytest.fixture(scope="module")
def result():
    plan = [
        Trial(MATMUL, 64, (Variant(8, 1), Variant(4, 1), Variant(8, 2))),
        Trial(CONV, 64),
        Trial(STEM, 64),
    ]
    told = []
    found = bench_kernels(plan, lambda *stage: told.append(stage), quick=True)
    assert [done for _, done, _ in told] == [0, 1, 2]
    return found


def test_rows_are_well_formed_json(result):
    plain = json.loads(as_json(result.to_dict()))
    assert Result.from_dict(plain) == result
    for row in plain["rows"]:
        assert set(ASKED) <= set(row) == {field.name for field in fields(Row)}
        assert row["ms"] > 0
        assert row["gmacs"] == pytest.approx(row["macs"] / row["ms"] / 1e6)
        assert row["resident_bits_per_weight"] > 1.5
        assert row["load_ms"] > 0
        assert row["read_gbs"] > 0
        assert all(time > 0 for time in row["baselines"].values())
    assert plain["machine"]["tiers"][-1] == "portable"
    assert "onnxruntime" in plain["machine"]["versions"]
    assert set(plain["machine"]["ceilings"]) == {"1", "2"}


def test_every_way_to_run_a_layer_has_a_row(result):
    ways = {(row.shape, row.activation_bits, row.threads, row.wish, row.memory): row for row in result.rows}
    assert len(ways) == len(result.rows)
    for shape, bits, threads in ((MATMUL, 8, 1), (MATMUL, 4, 1), (MATMUL, 8, 2), (CONV, 8, 1)):
        free = ways[str(shape), bits, threads, "multiplication-free", "compact"]
        assert free.multiplication_free
        dots = [row for key, row in ways.items() if key[:4] == (str(shape), bits, threads, "dot")]
        assert dots
        assert not any(row.multiplication_free for row in dots)
        assert free.baselines[baselines.FLOAT] == dots[0].baselines[baselines.FLOAT]
    stem = [row for row in result.rows if row.shape == str(STEM)]
    assert {(row.wish, row.memory) for row in stem} == {("dot", "fast"), ("auto", "fast")}
    assert {row.group_size for row in stem} == {None}
    assert {row.count for row in result.rows if row.shape == str(CONV)} == {2}


def test_a_ceiling_binds_where_the_instruction_set_has_one(result):
    for row in result.rows:
        assert (row.ceiling is None) == (row.tier == "portable")
        if row.ceiling is None:
            continue
        reading = row.resident_bytes / (row.read_gbs * 1e9)
        arithmetic = row.macs / (row.rate_gmacs * 1e9)
        assert row.ceiling_fraction == pytest.approx(max(reading, arithmetic) / (row.ms * 1e-3))
        wanted = "add rate" if row.multiplication_free else "dot rate"
        assert row.ceiling == ("read bandwidth" if reading > arithmetic else wanted)


@pytest.mark.parametrize("shape", [MATMUL, CONV], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_timed_is_the_whole_layer(shape, bits):
    layer = draw_layer(shape, 4)
    given, made = layer.input_quantizer(bits), layer.output_quantizer(bits)
    found = prepare(layer, wish="multiplication-free", memory="compact", bits=bits, threads=1).run()
    window = shape.window if isinstance(shape, Conv) else None
    x = layer.integers(bits)
    image = x if window else x[None, :, None]
    zeros = np.zeros(layer.row_scale.size, np.int32)
    sums = reference_sums(prepare_reference(layer.weight, zeros, given.zero_point, window), image)
    real = sums.astype(np.float32) * (np.float32(given.scale) * layer.row_scale)
    if window is None:
        np.testing.assert_array_equal(found, real[0, :, 0])
        # normal weights of a variance of 1 / K keep the size of normal activations; three trits lose some
        assert 0.5 < found.std() < 1.5
    else:
        levels = np.clip(np.rint(real / made.scale) + made.zero_point, 0, made.highest)
        # one float32 product instead of two may round to the other side of a half
        assert np.abs(found - levels).max() <= 1
        assert (found == levels).mean() > 0.99


def test_the_same_seed_draws_the_same_layer():
    one, same, other = (draw_layer(MATMUL, 64, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.x, same.x)
    np.testing.assert_array_equal(one.weight.int8(), same.weight.int8())
    assert not np.array_equal(one.weight.int8(), other.weight.int8())


def test_weights_repeat_after_many_output_channels():
    layer = draw_layer(MatMul(rows=1, inputs=8, outputs=600), 4)
    weights = layer.weight.int8()
    np.testing.assert_array_equal(weights[512:], weights[:88])
    assert layer.row_scale.shape == (600,)


def test_kernels_that_disagree_are_an_error(monkeypatch):
    made = kernels.prepare

    def wrong(layer, *, wish, **options):
        contender = made(layer, wish=wish, **options)
        return replace(contender, run=lambda: contender.run() + (wish == "auto"))

    monkeypatch.setattr(kernels, "prepare", wrong)
    with pytest.raises(KernelError, match="MatMul 16x192x64: found other results from"):
        bench_kernels([Trial(MATMUL, 64)], silent, quick=True)


def test_the_full_plan_has_all_that_is_asked():
    assert {trial.shape for trial in FULL_PLAN} == {*LLM, *RESNET50}
    assert {trial.group_size for trial in FULL_PLAN} == {4, 64}
    assert next(trial.variants for trial in FULL_PLAN if trial.shape == GEMM) == (
        Variant(8, 1),
        Variant(4, 1),
        Variant(8, 2),
    )


def test_only_kernels_that_are_wished_for_are_timed():
    plan = [Trial(MATMUL, 64), Trial(STEM, 64)]
    found = bench_kernels(plan, silent, wishes=["multiplication-free"], quick=True)
    assert [(row.shape, row.wish) for row in found.rows] == [(str(MATMUL), "multiplication-free")]


def test_weights_without_groups_are_timed_once():
    plan = plan_of([STEM, CONV], [64, 4, 64], [8, 8], [1])
    assert plan == (Trial(STEM, 64), Trial(CONV, 64), Trial(CONV, 4))


def test_a_plan_holds_every_combination():
    plan = plan_of([MATMUL, CONV], [4, 64], [8, 4], [1, 2])
    assert len(plan) == len(set(plan)) == 4
    assert plan[0] == Trial(MATMUL, 4, (Variant(8, 1), Variant(4, 1), Variant(8, 2), Variant(4, 2)))
