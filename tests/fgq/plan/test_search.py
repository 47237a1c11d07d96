"""Which plans are tried, and what is said where none holds."""

import pytest

from fgq.errors import ConfigError
from fgq.plan.plan_file import Plan
from fgq.plan.search import cheapest, doubts, search
from fgq.quantization.statistics import Estimate
from fgq.report import HeldOutCheck


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 16])
def test_the_first_that_holds_is_found_in_few_tries(count):
    for first in range(count + 1):
        tried = []

        def holds(index, first=first, tried=tried):
            tried.append(index)
            return index >= first

        assert cheapest(count, holds) == (first if first < count else None)
        assert len(tried) == len(set(tried)) <= 2 + count.bit_length()


def test_what_is_found_has_held_whatever_chance_does():
    held = {4, 6}
    assert cheapest(7, held.__contains__) in held


def check(value, high):
    return HeldOutCheck(measure="top-1", samples=204, loss=Estimate(value, value, high))


PLANS = [Plan(layers={}, takes={"bits": bits}) for bits in (2.1, 3.0, 4.2)]
LOSSES = [0.9, 0.5, 0.1]


def test_the_fewest_bits_within_the_loss():
    found = [search(PLANS, {}, most, lambda index: check(LOSSES[index], 1)) for most in (1, 0.5, 0.1)]
    assert found == [0, 1, 2]


def test_an_impossible_loss_says_what_was_reached():
    wanted = (
        r"found a loss of 0\.10 points \[0\.10, 1\.00\] at best \(top-1 on 204 held-out samples, 4\.20 bits"
    )
    with pytest.raises(ConfigError, match=wanted):
        search(PLANS, {}, 0.05, lambda index: check(LOSSES[index], 1))
    with pytest.raises(ConfigError, match="found no plan within target bits 2, wanted at most 1 points"):
        search([], {"bits": 2}, 1, lambda index: check(0, 0))


def test_doubts():
    assert list(doubts(None, None, None)) == []
    assert list(doubts(PLANS[0], check(0.1, 0.4), 0.5)) == []
    assert "was not measured" in next(doubts(PLANS[0], None, None))
    assert "204 held-out samples leave room for a loss of 0.70 points" in next(
        doubts(None, check(0, 0.7), 0.5)
    )
