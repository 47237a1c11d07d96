"""Functions of vectors against float64, on every instruction set of this machine."""

import numba
import numpy as np
import pytest
from scipy import special

from fgq.kernels.simd.emit import emitted, f32
from fgq.kernels.simd.functions import exp, gelu_by_erf, gelu_by_tanh, reciprocal, reduced, total_of
from fgq.kernels.simd.isa import available, index_of
from fgq.kernels.simd.rows import each_vector, load, store

SETS = [isa for isa in available() if isa.name in ("avx512", "avx2")]
"""The functions know the widths of registers, and nothing else of a set."""

pytestmark = pytest.mark.skipif(not SETS, reason="nothing can be emitted for this machine")


def compiled(isa, function, arrays):
    """Compile an emitted function of so many arrays and the size of the first."""
    emit, tier = emitted(function), index_of(isa)
    scope = {"emit": emit, "tier": tier}
    names = ", ".join(f"a{index}" for index in range(arrays))
    exec(f"def call({names}):\n    emit(tier, a0.size, {names})", scope)
    return numba.njit(scope["call"])


def mapped(isa, function, x):
    """Return ``function(x)`` of each element."""
    out = np.empty_like(x)

    def body(e, size, x, out):
        def do(k, vectors, count):
            for at in [(k + v * e.lanes(f32)) * 4 for v in range(vectors)]:
                store(e, out + at, function(load(e, x + at, count, f32)), count)

        each_vector(e, size, e.lanes(f32), do)

    compiled(isa, body, 2)(x, out)
    return out


@pytest.mark.parametrize("isa", SETS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("function", "wanted", "ends", "tolerance"),
    [
        # its last step 6e-8, the argument 4e-8, what the polynomial rounds before 5e-8
        (exp, np.exp, (-80, 0), 1.5e-7),
        # a unit in the last place
        (reciprocal, lambda x: 1 / x, (0.01, 1), 1.2e-7),
        # of x, not of the result: beside x = -5 the two halves cancel
        (gelu_by_erf, lambda x: x * special.ndtr(x), (-9, 9), 3e-7),
        (
            gelu_by_tanh,
            lambda x: x * special.expit(np.sqrt(8 / np.pi) * (x + 0.044715 * x**3)),
            (-9, 9),
            3e-7,
        ),
    ],
    ids=["exp", "reciprocal", "gelu by erf", "gelu by tanh"],
)
def test_errors_stay_within_their_bounds(isa, function, wanted, ends, tolerance):
    x = np.linspace(*ends, 100_003, dtype=np.float32)
    right = wanted(x.astype(np.float64))
    size = np.abs(x) if function in (gelu_by_erf, gelu_by_tanh) else right
    assert (np.abs(mapped(isa, function, x) - right) <= tolerance * size).all()


@pytest.mark.parametrize("isa", SETS, ids=lambda isa: isa.name)
def test_exp_at_its_ends(isa):
    x = np.float32([0, -0.0, -1e-45, -80.1, -1e4, -3e38, -np.inf, np.nan])
    np.testing.assert_array_equal(mapped(isa, exp, x), np.float32([1, 1, 1, 0, 0, 0, 0, np.nan]))


@pytest.mark.parametrize("isa", SETS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("together", [1, 4])
def test_vectors_are_joined_into_one_number(isa, together):
    def function(e, size, x, out):
        sums = [e.variable(e.zeros(f32)) for _ in range(together)]
        most = [e.variable(e.zeros(f32)) for _ in range(together)]

        def do(k, vectors, count):
            for v in range(vectors):
                value = load(e, x + (k + v * e.lanes(f32)) * 4, count, f32)
                sums[v] += value
                most[v].value = e.larger(most[v].value, value)

        each_vector(e, size, e.lanes(f32), do, together=together)
        e.store(out, reduced(sums, total_of))
        e.store(out + 4, reduced(most, e.larger))

    call = compiled(isa, function, 2)
    for size in (0, 1, 5, 8, 16, 17, 64, 100, 200):
        out = np.full(2, -1, np.float32)
        call(np.arange(1, size + 1, dtype=np.float32), out)
        assert list(out) == [size * (size + 1) / 2, size]
