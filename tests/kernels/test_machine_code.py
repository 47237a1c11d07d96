"""What multiplication-free kernels promise, read off their machine code; and that those which multiply fail.

A look-up stands for four weights at most, so a group of N takes at least N / 4 of them. A register of sums of
bytes is multiplied by four instructions, one of words by two: each has N / 16 look-ups at least.
"""

import numba
import numpy as np
import pytest
from layers import draw_weight
from machine_code import (
    MULTIPLIES,
    PERMUTES,
    READS_TABLE,
    assembly_of,
    assembly_of_block,
    assembly_of_stage,
    excess_multiplications,
    loops,
)

from fgq.errors import KernelError
from fgq.kernels.products import gemm_amx, gemm_ternary_tables, gemv_dot, gemv_ternary_permute
from fgq.kernels.products.driver import aligned
from fgq.kernels.simd.emit import emitted, i8, i32
from fgq.kernels.simd.isa import BY_NAME, available, index_of

pytestmark = pytest.mark.skipif(numba.config.DISABLE_JIT, reason="there is no machine code")

HERE = {isa.name for isa in available()}

MULTIPLYING = (
    "vpmaddwd vpmaddubsw vpmullw vpmulld vpmuludq vpmulhrsw vpdpbusd vpdpbusds vpdpwssd pmaddwd "
    "vfmadd231ps vfnmadd213ps vfmsub132pd vmulps vmulpd vmulss mulps tdpbusd tdpbf16ps"
)
NOT_MULTIPLYING = "vpaddw vpsubd vpermw vpshufb vpmultishiftqb vpsadbw vmovdqu64 imulq leaq"


def on(*names):
    """Parametrise over those instruction sets that this machine has."""
    return pytest.mark.parametrize(
        "isa", [BY_NAME[name] for name in names if name in HERE], ids=lambda i: i.name
    )


def weights(group_size):
    return draw_weight(np.random.default_rng(0), "ternary", (200, 256), group_size).matrices(1)


def count(assembly, pattern):
    return sum(loop.count(pattern) for loop in loops(assembly))


@on("avx512", "avx2")
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group_size", [4, 64])
def test_tables_multiply_once_per_group(isa, bits, group_size):
    engine = gemm_ternary_tables.prepare(weights(group_size), isa, activation_bits=bits)
    assembly, stage = assembly_of_block(engine), assembly_of_stage(engine)
    assert count(assembly, READS_TABLE) >= group_size // 4
    assert count(assembly, MULTIPLIES) > 0
    assert not excess_multiplications(assembly, READS_TABLE, group_size / 16)
    assert count(stage, MULTIPLIES) == 0


@on("avx512", "avx2")
@pytest.mark.parametrize("group_size", [4, 64])
def test_permutes_multiply_once_per_group(isa, group_size):
    try:
        engine = gemv_ternary_permute.prepare(weights(group_size), isa)
    except KernelError:
        pytest.skip("the kernel is not made for this instruction set")
    assembly, stage = assembly_of_block(engine), assembly_of_stage(engine)
    assert count(assembly, PERMUTES) >= group_size // 4
    assert count(assembly, MULTIPLIES) > 0
    assert not excess_multiplications(assembly, PERMUTES, group_size / 16)
    assert count(stage, MULTIPLIES) == 0


@on("amx")
def test_tiles_fail(isa):
    assembly = assembly_of_block(gemm_amx.prepare(weights(64), isa))
    assert "tdpbusd" in assembly
    assert excess_multiplications(assembly, READS_TABLE, 64 / 16)


@on("avx512vnni", "avx512", "avx2")
def test_dot_products_fail(isa):
    assembly = assembly_of_block(gemv_dot.prepare(weights(64), isa))
    for lookup in (READS_TABLE, PERMUTES):
        assert excess_multiplications(assembly, lookup, 64 / 16)


@emitted
def _products(e, x, y, count, out):
    total = e.variable(e.zeros(i32))
    for i in e.range(0, count, e.isa.width):
        total.value = e.dot(total, e.load(x + i, i8), e.load(y + i, i8))
    e.store(out, total)


@on("avx512vnni", "avx2")
def test_the_smallest_loop_of_products_fails(isa):
    tier = index_of(isa)

    def run(x, y, count, out):
        _products(tier, x, y, count, out)

    x, out = aligned((256,), np.uint8), aligned((16,), np.int32)
    assembly = assembly_of(run, tuple(numba.typeof(given) for given in (x, x, 256, out)))
    assert count(assembly, MULTIPLIES) > 0
    assert excess_multiplications(assembly, READS_TABLE, 64 / 16)


NESTED = """
outer:
    vpmulld %zmm0, %zmm1, %zmm2
inner:
    {vex} vpaddw  (%rax,%rcx), %ymm2, %ymm2
    vpbroadcastd (%rax), %zmm3      # spread, not looked up
    vpmultishiftqb 64(%rax), %zmm3, %zmm4
    imulq   %rcx, %rdx
    vmovdqu64 %zmm2, (%rax)
    jne     inner
    vpermw  %zmm1, %zmm2, %zmm3
    jmp     outer
behind:
    vpmaddwd %zmm0, %zmm1, %zmm2
    retq
"""


def test_loops_are_told_from_what_is_around_them():
    kinds = MULTIPLIES, READS_TABLE, PERMUTES
    found = [[loop.count(pattern) for pattern in kinds] for loop in loops(NESTED)]
    assert found == [[1, 0, 1], [0, 2, 0], [1, 0, 0]]
    assert len(excess_multiplications(NESTED, PERMUTES, 1)) == 1
    assert len(excess_multiplications(NESTED, PERMUTES, 2)) == 2


@pytest.mark.parametrize("mnemonic", MULTIPLYING.split())
def test_what_multiplies(mnemonic):
    assert MULTIPLIES.match(f"{mnemonic}\t%zmm0, %zmm1, %zmm2")


@pytest.mark.parametrize("mnemonic", NOT_MULTIPLYING.split())
def test_what_does_not_multiply(mnemonic):
    assert not MULTIPLIES.match(f"{mnemonic}\t%zmm0, %zmm1, %zmm2")
