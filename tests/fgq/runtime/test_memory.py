"""The plan of memory: nothing that is needed at one time overlaps."""

import numpy as np
import pytest

from fgq.runtime.memory import ALIGNMENT, LiveRange, arrange


@pytest.mark.parametrize("seed", range(20))
def test_live_ranges_that_meet_never_overlap(seed):
    rng = np.random.default_rng(seed)
    ranges = []
    for _ in range(int(rng.integers(1, 60))):
        first, length = (int(number) for number in rng.integers(0, 20, 2))
        ranges.append(LiveRange(int(rng.integers(1, 5000)), first, first + length // 4))
    offsets, total = arrange(ranges)
    for i, (one, begin) in enumerate(zip(ranges, offsets, strict=True)):
        assert begin % ALIGNMENT == 0
        assert begin + one.size <= total
        for other, start in zip(ranges[:i], offsets[:i], strict=True):
            if one.first <= other.last and other.first <= one.last:
                assert begin + one.size <= start or start + other.size <= begin
    alive = [sum(live.size for live in ranges if live.first <= time <= live.last) for time in range(30)]
    assert max(alive) <= total <= sum(live.size + ALIGNMENT for live in ranges)


def test_a_chain_takes_no_more_than_its_two_largest_neighbours():
    sizes = [640, 1280, 320, 960, 64]
    ranges = [LiveRange(size, index, index + 1) for index, size in enumerate(sizes)]
    assert arrange(ranges)[1] == 640 + 1280


def test_nothing_takes_nothing():
    assert arrange([]) == ([], 0)
