import pytest

from fgq.eval.bench import ceilings
from fgq.kernels.simd.isa import available

HERE = [isa.name for isa in available()]


@pytest.mark.parametrize("count", [1, 1000, 1 << 16])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_working_set_is_read(count, threads):
    assert 0 < ceilings.read_bandwidth(count, threads) < 1e13


def test_the_portable_set_has_no_rates_of_its_own():
    assert ceilings.dot_rate("portable") is None
    assert ceilings.add_rate("portable", 16) is None


@pytest.mark.parametrize("tier", HERE[:-1])
def test_a_tier_computes_at_a_rate_that_a_processor_can_have(tier):
    """No core does more than 2**12 multiply-adds or 2**8 additions in each of 6e9 cycles a second."""
    assert 1e9 < ceilings.dot_rate(tier) < 2**12 * 6e9
    assert 1e9 < ceilings.add_rate(tier, 16) < 2**8 * 6e9


@pytest.mark.skipif("amx" not in HERE, reason="this machine has no tiles")
def test_dot_products_are_done_and_not_optimized_away():
    """A tile product does 16,384 in 16 cycles, vpdpbusd 64 and twice a cycle, vpmaddwd 32."""
    assert ceilings.dot_rate("amx") > 3 * ceilings.dot_rate("avx512vnni") > 3 * ceilings.dot_rate("avx512")


def test_portable_reading_gives_the_sum_of_what_is_there():
    memory, out = ceilings.aligned((64,), "int8"), ceilings.aligned((64,), "int8")
    memory[:] = 0
    memory[8] = 5
    ceilings._portable_read(memory, out, 1)
    assert out[0] == 5
