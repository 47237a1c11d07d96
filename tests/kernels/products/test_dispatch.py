import itertools

import pytest

from fgq.errors import KernelError
from fgq.kernels.products.dispatch import (
    FEW_ROWS,
    KERNELS,
    MOST_ADDED,
    Kernel,
    Problem,
    Wish,
    build_table,
    select_kernel,
)
from fgq.kernels.simd.isa import BY_NAME, INSTRUCTION_SETS

PROBLEMS = [
    Problem(largest_code=code, rows=rows, depthwise=depthwise)
    for code, rows, depthwise in itertools.product((0, 1, 4, 7, 127), (1, FEW_ROWS, 9, 64), (True, False))
]

MACHINES = {
    "amx": INSTRUCTION_SETS,
    "avx512vnni": tuple(BY_NAME[n] for n in ("avx512vnni", "avx512vbmi", "avx512", "avx2", "portable")),
    "avx512": tuple(BY_NAME[n] for n in ("avx512", "avx2", "portable")),
    "avxvnni": tuple(BY_NAME[n] for n in ("avxvnni", "avx2", "portable")),
    "avx2": tuple(BY_NAME[n] for n in ("avx2", "portable")),
    "any": (BY_NAME["portable"],),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_layer_has_a_kernel_on_every_machine(problem, machine):
    for wish in (Wish.AUTO, Wish.DOT, Wish.REFERENCE):
        if wish is Wish.DOT and problem.depthwise is False and machine == "any":
            assert select_kernel(problem, MACHINES[machine], wish).module == "gemm_int8_portable"
        chosen = select_kernel(problem, MACHINES[machine], wish)
        assert chosen.supports(problem)
        assert chosen.isa in MACHINES[machine]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_without_multiplication_means_so_or_is_refused(problem, machine):
    if problem.largest_code <= MOST_ADDED:
        chosen = select_kernel(problem, MACHINES[machine], Wish.MULTIPLICATION_FREE)
        assert chosen.multiplication_free
        assert chosen.supports(problem)
    else:
        with pytest.raises(KernelError, match=f"codes up to {problem.largest_code} as weights"):
            select_kernel(problem, MACHINES[machine], Wish.MULTIPLICATION_FREE)


@pytest.mark.parametrize(
    ("machine", "problem", "name"),
    [
        ("amx", Problem(largest_code=1), "gemm_amx[amx]"),
        ("amx", Problem(largest_code=1, rows=1), "gemv_dot[avx512vnni]"),
        ("amx", Problem(largest_code=127), "gemm_amx[amx]"),
        ("avx512vnni", Problem(largest_code=1), "gemm_dot[avx512vnni]"),
        ("avx512", Problem(largest_code=1), "gemm_ternary_tables[avx512]"),
        ("avx512", Problem(largest_code=7), "gemm_dot[avx512]"),
        ("avxvnni", Problem(largest_code=1), "gemm_dot[avxvnni]"),
        ("avx2", Problem(largest_code=1), "gemm_ternary_tables[avx2]"),
        ("avx2", Problem(largest_code=127), "gemm_dot[avx2]"),
        ("any", Problem(largest_code=4), "gemm_ternary_portable"),
        ("any", Problem(largest_code=127), "gemm_int8_portable"),
        ("any", Problem(largest_code=1, depthwise=True), "conv2d_depthwise"),
        ("avx2", Problem(largest_code=127, depthwise=True), "conv2d_depthwise[avx2]"),
    ],
    ids=str,
)
def test_the_preferred_kernel(machine, problem, name):
    assert select_kernel(problem, MACHINES[machine]).name == name


def test_a_tier_can_be_forced():
    for tier in ("avx2", "avx512", "portable"):
        chosen = select_kernel(Problem(largest_code=1), MACHINES["amx"], tier=tier)
        assert chosen.isa.name == tier


@pytest.mark.parametrize(
    ("tier", "message"),
    [("amx", "found amx, which this machine lacks, wanted one of avx2, portable"), ("sse9", "found 'sse9'")],
)
def test_a_tier_that_is_not_there_is_refused(tier, message):
    with pytest.raises(KernelError, match=message):
        select_kernel(Problem(largest_code=1), MACHINES["avx2"], tier=tier)


def test_a_wish_that_a_tier_cannot_meet_is_refused():
    with pytest.raises(KernelError, match="multiplication-free on amx for a layer of ternary weights"):
        select_kernel(Problem(largest_code=1), MACHINES["amx"], Wish.MULTIPLICATION_FREE, "amx")


def test_the_reference_is_taken_only_where_it_is_asked_for():
    for problem, machine in itertools.product(PROBLEMS, MACHINES.values()):
        assert select_kernel(problem, machine, Wish.REFERENCE).module == "reference"
        assert select_kernel(problem, machine, Wish.AUTO).module != "reference"


def test_two_kernels_of_one_name_are_refused():
    kernel = Kernel(module="twice", isa=BY_NAME["avx2"])
    with pytest.raises(KernelError, match=r"kernel twice\[avx2\]: found twice"):
        build_table([kernel, kernel])


def test_every_kernel_can_be_reached():
    reached = {
        select_kernel(problem, machine, wish, tier).name
        for problem, machine, wish in itertools.product(PROBLEMS[2:], MACHINES.values(), Wish)
        if not (wish is Wish.MULTIPLICATION_FREE and problem.largest_code > MOST_ADDED)
        for tier in (None,)
    }
    assert set(KERNELS) - reached <= {name for name in KERNELS if "portable" in name}
