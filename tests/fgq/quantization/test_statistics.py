import numpy as np
import pytest
import scipy.stats

from fgq.errors import ConfigError, DataError
from fgq.quantization.statistics import Estimate, bootstrap_interval, paired_bootstrap, wilson_interval


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 3), (7, 10), (932, 999)])
def test_wilson_equals_scipy(successes: int, n: int, confidence: float) -> None:
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    # Both evaluate the same closed form in double precision; only the order of operations differs.
    np.testing.assert_allclose(wilson_interval(successes, n, confidence), expected, rtol=1e-12, atol=1e-15)


def test_wilson_touches_the_end_when_all_are_right_or_wrong() -> None:
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 1.0
    assert wilson_interval(0, 20)[1] > 0.1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (1, -1)])
def test_wilson_refuses_impossible_counts(successes: int, n: int) -> None:
    with pytest.raises(DataError, match=f"{successes} successes of {n} samples"):
        wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, float("nan")])
def test_confidence_outside_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(ConfigError, match="confidence"):
        wilson_interval(1, 2, confidence)
    with pytest.raises(ConfigError, match="confidence"):
        bootstrap_interval([1.0, 2.0], confidence=confidence)


def reciprocal_ranks(n: int, seed: int) -> np.ndarray:
    return 1.0 / np.random.default_rng(seed).integers(1, 6, size=n)


def test_bootstrap_agrees_with_scipy() -> None:
    scores = reciprocal_ranks(300, seed=1)
    expected = scipy.stats.bootstrap(
        (scores,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    # The draws differ, so each end has a Monte Carlo error: the 2.5 % quantile of R = 10,000 normal means
    # of deviation s has the error s sqrt(0.025 * 0.975 / R) / density(quantile) = 0.027 s. Six of those,
    # times sqrt(2) for two such ends.
    s = scores.std() / np.sqrt(scores.size)
    np.testing.assert_allclose(bootstrap_interval(scores), expected, rtol=0, atol=0.23 * s)


def test_paired_bootstrap_agrees_with_scipy() -> None:
    a = reciprocal_ranks(400, seed=3)
    b = np.where(np.random.default_rng(4).random(400) < 0.2, reciprocal_ranks(400, seed=5), a)
    result = paired_bootstrap(a, b)
    expected = scipy.stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis) - y.mean(axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(6),
    ).confidence_interval
    s = (a - b).std() / np.sqrt(a.size)
    # The tolerance of test_bootstrap_agrees_with_scipy.
    np.testing.assert_allclose((result.low, result.high), expected, rtol=0, atol=0.23 * s)
    # Two means of 400 numbers below 1, against the mean of their differences: a few roundings.
    assert result.value == pytest.approx(a.mean() - b.mean(), abs=1e-14)


def test_paired_interval_is_narrower_than_the_separate_ones() -> None:
    a = reciprocal_ranks(500, seed=7)
    b = a - 0.01 * np.random.default_rng(8).random(500)
    result = paired_bootstrap(a, b)
    assert result.low > 0
    low, high = bootstrap_interval(a)
    assert result.high - result.low < (high - low) / 10


def test_blocks_do_not_lose_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = reciprocal_ranks(50, seed=9)
    whole = bootstrap_interval(scores, resamples=1001)
    # 7 rows of 50 at once: 143 blocks. Other draws, so the same Monte Carlo tolerance for 1001 resamples.
    monkeypatch.setattr("fgq.quantization.statistics._DRAWS_AT_ONCE", 7 * 50)
    blocks = bootstrap_interval(scores, resamples=1001)
    assert whole == pytest.approx(blocks, abs=0.73 * scores.std() / np.sqrt(50))
    monkeypatch.setattr("fgq.quantization.statistics._DRAWS_AT_ONCE", 1)
    low, high = bootstrap_interval(scores, resamples=3)
    assert scores.min() <= low < high <= scores.max()


def test_the_same_seed_gives_the_same_interval() -> None:
    scores = reciprocal_ranks(64, seed=10)
    assert bootstrap_interval(scores, seed=5) == bootstrap_interval(scores, seed=5)
    assert bootstrap_interval(scores, seed=5) != bootstrap_interval(scores, seed=6)


def test_equal_scores_and_single_samples_have_no_width() -> None:
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert bootstrap_interval(np.ones(30)) == (1.0, 1.0)
    assert bootstrap_interval(np.zeros(30)) == (0.0, 0.0)
    assert paired_bootstrap([0.5, 1.0], [0.5, 1.0]) == Estimate(0.0, 0.0, 0.0)


@pytest.mark.parametrize("scores", [[], [[1.0, 2.0]], 3.0])
def test_scores_that_are_not_a_vector_are_refused(scores: object) -> None:
    with pytest.raises(DataError, match="shape"):
        bootstrap_interval(scores)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match="sample 1"):
        bootstrap_interval([1.0, bad])
    with pytest.raises(DataError, match="sample 1"):
        paired_bootstrap([1.0, 2.0], [1.0, bad])


def test_unequal_lengths_and_no_resamples_are_refused() -> None:
    with pytest.raises(DataError, match="3 and 2 scores"):
        paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0])
    with pytest.raises(ConfigError, match="resamples=0"):
        bootstrap_interval([1.0], resamples=0)


def test_estimates_read_well() -> None:
    estimate = Estimate(0.93214, 0.9271, 0.9369)
    assert str(estimate) == "0.932 [0.927, 0.937]"
    assert estimate.percent() == "93.2 % [92.7, 93.7]"
    assert estimate.percent(2) == "93.21 % [92.71, 93.69]"
