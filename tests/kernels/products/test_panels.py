"""Weights in panels: every one in its place, and compact ones decoded to the same bytes."""

import numpy as np
import pytest
from layers import draw_weight

from fgq.errors import KernelError
from fgq.kernels import Plane, Weight
from fgq.kernels._jit import jit
from fgq.kernels.products.driver import aligned
from fgq.kernels.products.panels import TILE_BYTES, Coding, decode_tile, pack, pack_compact
from fgq.kernels.simd.emit import emitted
from fgq.kernels.simd.isa import BY_NAME, available, index_of

SETS = [BY_NAME[name] for name in ("avx512", "avx2") if BY_NAME[name] in available()]


def by_name(isa):
    return isa.name


@pytest.mark.parametrize("shape", [(1, 1), (16, 64), (17, 65), (70, 200)])
def test_every_weight_is_in_its_place(shape):
    weight = draw_weight(np.random.default_rng(1), "int8", shape, 64)
    packed = pack([weight, weight])
    assert packed.dtype == np.uint8
    assert packed.ctypes.data % 64 == 0
    np.testing.assert_array_equal(packed[0], packed[1])
    tiles = packed[0].view(np.int8).reshape(-1, -(-shape[1] // 64), 16, 16, 4)
    assert len(tiles) % 4 == 0
    whole = np.zeros((16 * len(tiles), 64 * tiles.shape[1]), np.int8)
    whole[: shape[0], : shape[1]] = weight.int8()
    for (m, k), value in np.ndenumerate(whole):
        assert tiles[m // 16, k // 64, k % 64 // 4, m % 16, k % 4] == value


@emitted
def _decode(e, bits, run, planes, count, records, out):
    coding = Coding(bits=bits, run=run, planes=planes)
    for tile in e.range(0, count):
        decode_tile(e, records + tile * coding.record_bytes, coding, out + tile * TILE_BYTES)


def decoder(tier, bits, run, planes):
    @jit
    def decode(count, records, out):
        _decode(tier, bits, run, planes, count, records, out)

    return decode


@pytest.mark.parametrize("isa", SETS, ids=by_name)
@pytest.mark.parametrize("kind", ["ternary", "int4", "two planes", "dual int4"])
@pytest.mark.parametrize(("group_size", "run"), [(4, 4), (24, 8), (64, 64), (256, 64)])
def test_compact_weights_are_decoded_to_the_same_tiles(isa, kind, group_size, run):
    weight = draw_weight(np.random.default_rng(2), kind, (70, 330), group_size)
    coding, records = pack_compact([weight])
    assert (coding.run, coding.planes) == (run, len(weight.planes))
    wanted = pack([weight])[0]
    out = aligned(wanted.shape, np.uint8)
    decoder(index_of(isa), coding.bits, coding.run, coding.planes)(out.size // TILE_BYTES, records[0], out)
    np.testing.assert_array_equal(out, wanted)


def test_bits_per_weight():
    rng = np.random.default_rng(3)
    for kind, group_size, bits in (
        ("ternary", 64, 2.125),
        ("ternary", 4, 4),
        ("tied", 64, 4.125),
        ("int4", 16, 4.5),
        ("dual int4", 64, 8.25),
    ):
        weight = draw_weight(rng, kind, (1024, 2048), group_size)
        _, records = pack_compact([weight])
        # one record more than there are tiles
        assert 8 * records.nbytes / weight.planes[0].codes.size == pytest.approx(bits, rel=1e-3)


def test_weights_that_cannot_be_compact_are_refused():
    group, one = np.zeros(8, np.int32), np.ones((1, 1), np.uint8)
    eights = Weight.single(np.full((1, 8), 8, np.int8), one, group)
    with pytest.raises(KernelError, match=r"found codes up to 8 .* wanted codes up to 7"):
        pack_compact([eights])
    split = Weight.single(
        np.ones((1, 8), np.int8), np.ones((1, 2), np.uint8), (np.arange(8) // 6).astype(np.int32)
    )
    with pytest.raises(KernelError, match=r"begin at 0, 6, .* wanted .* multiples of 4"):
        pack_compact([split])
    large, small = (
        Plane(np.full((1, 8), code, np.int8), one * np.uint8(alpha)) for code, alpha in ((7, 20), (-7, 2))
    )
    with pytest.raises(KernelError, match=r"alpha \* code up to 140, wanted 127 in each plane"):
        pack_compact([Weight((large, small), group)])
