"""The tile kernel with more rows than one block holds: those of compact weights are taller."""

import numpy as np
import pytest

from fgq.kernels import prepare_conv2d, prepare_matmul
from fgq.kernels.products import gemm_amx
from fgq.kernels.simd.isa import BY_NAME, available
from tests.kernels.layers import draw_activations, draw_weight

AMX = BY_NAME["amx"]

pytestmark = pytest.mark.skipif(AMX not in available(), reason="this machine has no tiles")


@pytest.mark.parametrize("memory", ["fast", "compact"])
@pytest.mark.parametrize("reduction", [64, 1000])
def test_rows_on_both_sides_of_a_block(memory, reduction):
    rng = np.random.default_rng(reduction)
    weight = draw_weight(rng, "ternary", (70, reduction), 64)
    layer = prepare_matmul(weight, kernel="dot", tier="amx", memory=memory)
    for rows in (9, 399, 400, 401, 832, 833, 1300):
        x = draw_activations(rng, (rows, reduction), 8)
        wanted = x.astype(np.int64) @ weight.int8().astype(np.int64).T
        for threads in (1, 2):
            np.testing.assert_array_equal(layer(x, threads=threads), wanted)


@pytest.mark.parametrize("memory", ["fast", "compact"])
def test_no_images(memory):
    weight = draw_weight(np.random.default_rng(1), "ternary", (16, 1, 1, 64), 64)
    layer = prepare_conv2d(weight, kernel="dot", tier="amx", memory=memory)
    assert layer(np.zeros((0, 4, 4, 64), np.uint8)).shape == (0, 4, 4, 16)


@pytest.mark.parametrize("reduction", [64, 512, 4096, 30_000])
def test_blocks_of_compact_weights_are_few_and_alike(reduction):
    weight = draw_weight(np.random.default_rng(0), "ternary", (64, reduction), 64)
    plans = {
        compact: gemm_amx.prepare(weight.matrices(1), AMX, compact=compact).plan for compact in (False, True)
    }
    for rows in (1, 32, 33, 400, 401, 784, 3136):
        fast, compact = (plans[key](rows, 256) for key in (False, True))
        assert -(-rows // compact.rows_step) <= -(-rows // fast.rows_step)
        assert compact.rows_step % 32 == 0
        assert compact.rows_step - 32 < rows  # no row tile pair without a row
        assert compact.outputs_step % 64 == 0
