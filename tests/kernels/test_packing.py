import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgq.errors import KernelError
from fgq.kernels.packing import PER_BYTE, TABLE, USED_BYTES, pack_trits, unpack_trits


def test_bytes_are_base_three_numbers_with_the_first_trit_lowest():
    codes = np.array([1, -1, -1, -1, -1, 0, 0, 0, 0, 1], np.int8)
    assert pack_trits(codes).tolist() == [2, 1 + 3 + 9 + 27 + 2 * 81]


def test_table_inverts_every_byte_in_use():
    rows = TABLE[:USED_BYTES]
    assert TABLE.dtype == np.int8
    assert TABLE.shape == (256, PER_BYTE)
    assert [sum((int(code) + 1) * 3**j for j, code in enumerate(row)) for row in rows] == list(
        range(USED_BYTES)
    )
    assert np.array_equal(pack_trits(rows), np.arange(USED_BYTES))


@settings(derandomize=True, deadline=None)
@given(shape=st.lists(st.integers(0, 9), min_size=0, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_unpacking_gives_back_any_shape(shape, seed):
    codes = np.random.default_rng(seed).integers(-1, 2, shape, dtype=np.int8)
    packed = pack_trits(codes)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-codes.size // PER_BYTE),)
    back = unpack_trits(packed, codes.shape)
    assert back.dtype == np.int8
    assert np.array_equal(back, codes)


def test_views_in_another_order_are_packed_in_c_order():
    codes = np.random.default_rng(1).integers(-1, 2, (7, 6, 5), dtype=np.int8).transpose(2, 0, 1)
    assert np.array_equal(unpack_trits(pack_trits(codes), codes.shape), codes)


def test_the_last_byte_is_filled_with_code_zero():
    padded = unpack_trits(pack_trits(np.array([1], np.int8)), (5,))
    assert padded.tolist() == [1, 0, 0, 0, 0]


def test_codes_beyond_one_are_refused():
    with pytest.raises(KernelError, match=r"found 0\.\.2"):
        pack_trits(np.array([0, 2], np.int8))


@pytest.mark.parametrize("byte", [243, 255])
def test_bytes_that_mean_nothing_are_refused_with_their_place(byte):
    with pytest.raises(KernelError, match=f"byte {byte} at index 3"):
        unpack_trits(np.array([0, 1, 242, byte], np.uint8), (20,))


def test_a_wrong_number_of_bytes_is_refused():
    with pytest.raises(KernelError, match=r"uint8\[2\] for 11 codes, wanted uint8\[3\]"):
        unpack_trits(np.zeros(2, np.uint8), (11,))
