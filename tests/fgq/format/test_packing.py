import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgq.errors import KernelError
from fgq.format.packing import pack_codes, per_byte, table, unpack_codes, used_bytes

LARGEST = [1, 4, 7]


def test_how_many_codes_a_byte_holds():
    assert [(per_byte(L), used_bytes(L)) for L in LARGEST] == [(5, 243), (2, 81), (2, 225)]


def test_bytes_are_numbers_with_the_first_code_lowest():
    codes = np.array([1, -1, -1, -1, -1, 0, 0, 0, 0, 1], np.int8)
    assert pack_codes(codes, 1).tolist() == [2, 1 + 3 + 9 + 27 + 2 * 81]
    assert pack_codes(np.array([-4, 3], np.int8), 4).tolist() == [7 * 9]
    assert pack_codes(np.array([-7, 7], np.int8), 7).tolist() == [14 * 15]


@pytest.mark.parametrize("max_code", LARGEST)
def test_table_inverts_every_byte_in_use(max_code):
    base, used = 2 * max_code + 1, used_bytes(max_code)
    assert table(max_code).dtype == np.int8
    assert table(max_code).shape == (256, per_byte(max_code))
    rows = table(max_code)[:used]
    assert [sum((int(code) + max_code) * base**j for j, code in enumerate(row)) for row in rows] == list(
        range(used)
    )
    assert np.array_equal(pack_codes(rows, max_code), np.arange(used))


@pytest.mark.parametrize("max_code", LARGEST)
@settings(deadline=None)
@given(shape=st.lists(st.integers(0, 9), min_size=0, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_unpacking_gives_back_any_shape(max_code, shape, seed):
    codes = np.random.default_rng(seed).integers(-max_code, max_code + 1, shape, dtype=np.int8)
    packed = pack_codes(codes, max_code)
    assert packed.dtype == np.uint8
    assert packed.shape == (-(-codes.size // per_byte(max_code)),)
    back = unpack_codes(packed, codes.shape, max_code)
    assert back.dtype == np.int8
    assert np.array_equal(back, codes)


def test_views_in_another_order_are_packed_in_c_order():
    codes = np.random.default_rng(1).integers(-1, 2, (7, 6, 5), dtype=np.int8).transpose(2, 0, 1)
    assert np.array_equal(unpack_codes(pack_codes(codes, 1), codes.shape, 1), codes)


@pytest.mark.parametrize("max_code", LARGEST)
def test_the_last_byte_is_filled_with_code_zero(max_code):
    count = per_byte(max_code)
    padded = unpack_codes(pack_codes(np.array([1], np.int8), max_code), (count,), max_code)
    assert padded.tolist() == [1] + [0] * (count - 1)


@pytest.mark.parametrize("max_code", LARGEST)
def test_larger_codes_are_refused(max_code):
    with pytest.raises(KernelError, match=rf"found 0\.\.{max_code + 1}, wanted -{max_code}\.\.{max_code}"):
        pack_codes(np.array([0, max_code + 1], np.int8), max_code)


@pytest.mark.parametrize(("max_code", "byte"), [(1, 243), (1, 255), (4, 81), (7, 225)])
def test_bytes_that_mean_nothing_are_refused_with_their_place(max_code, byte):
    with pytest.raises(KernelError, match=f"byte {byte} at index 3"):
        unpack_codes(np.array([0, 1, 2, byte], np.uint8), (4 * per_byte(max_code),), max_code)


def test_a_wrong_number_of_bytes_is_refused():
    with pytest.raises(KernelError, match=r"uint8\[2\] for 11 codes, wanted uint8\[3\]"):
        unpack_codes(np.zeros(2, np.uint8), (11,), 1)
