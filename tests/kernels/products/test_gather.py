"""Panels of taps, against slicing the padded image, and the memory around image and panel."""

import numpy as np
import pytest
from engines import before_a_forbidden_page
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import fitting_size

from fgq.kernels import Window
from fgq.kernels.products.gather import Geometry, gatherer
from fgq.kernels.simd.isa import available, index_of

GUARD = 165
TIERS = [isa for isa in available() if isa.name in ("avx512", "avx2", "portable")]


def taps(x, geometry, group):
    """Return all rows of a conv group, [rows, K]."""
    window, (kh, kw), (oh, ow) = geometry.window, geometry.kernel, geometry.size
    (top, left, bottom, right), (down, aside) = window.pads, window.strides
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=geometry.x_zero)
    inputs = x.shape[3] // window.groups
    columns = [
        padded[
            :,
            i * window.dilations[0] :: down,
            j * window.dilations[1] :: aside,
            group * inputs : (group + 1) * inputs,
        ][:, :oh, :ow]
        for i in range(kh)
        for j in range(kw)
    ]
    return np.concatenate(columns, axis=3).reshape(geometry.rows, -1)


def check(isa, x, geometry, group, first, count, pitch):
    wanted = taps(x, geometry, group)[first : first + count]
    memory = before_a_forbidden_page(np.full(128 + count * pitch, GUARD, np.uint8))
    panel = memory[128:].reshape(count, pitch)
    flat = before_a_forbidden_page(x.reshape(-1))
    gatherer(index_of(isa))(flat, geometry.numbers, group, first, count, panel)
    np.testing.assert_array_equal(panel[:, : wanted.shape[1]], wanted)
    assert (memory[:128] == GUARD).all()


@pytest.mark.parametrize("isa", TIERS, ids=lambda isa: isa.name)
@settings(deadline=None, max_examples=150)
@given(
    batch=st.integers(1, 2),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    inputs=st.integers(1, 70),
    conv_groups=st.sampled_from([1, 1, 1, 3]),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 4), (5, 2), (7, 7)]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 4)] * 4),
    dilations=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    room=st.sampled_from([0, 1, 63, 100]),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_are_slices_of_the_padded_image(
    isa, batch, size, inputs, conv_groups, kernel, strides, pads, dilations, room, seed
):
    window = Window(strides=strides, pads=pads, dilations=dilations, groups=conv_groups)
    size = fitting_size(size, kernel, window)
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (batch, *size, inputs * conv_groups), dtype=np.uint8)
    geometry = Geometry.of(x.shape, kernel, window, 77)
    group, first = int(rng.integers(conv_groups)), int(rng.integers(geometry.rows))
    count = int(rng.integers(1, geometry.rows - first + 1))
    check(isa, x, geometry, group, first, count, inputs * kernel[0] * kernel[1] + room)


@pytest.mark.parametrize("isa", TIERS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("shape", "kernel", "window"),
    [
        ((1, 20, 21, 3), (7, 7), Window(strides=(2, 2), pads=(3, 3, 3, 3))),
        ((2, 9, 9, 64), (3, 3), Window(pads=(1, 1, 1, 1))),
        ((1, 8, 8, 128), (1, 1), Window(strides=(2, 2))),
        ((1, 5, 7, 200), (1, 1), Window()),
        ((1, 1, 1, 1), (1, 1), Window()),
        ((1, 1, 1, 2), (3, 3), Window(pads=(9, 9, 9, 9))),  # windows that lie on the padding alone
    ],
    ids=["stem", "3 x 3", "1 x 1 strided", "1 x 1", "one byte", "far away"],
)
def test_whole_layers(isa, shape, kernel, window):
    x = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    geometry = Geometry.of(shape, kernel, window, 0)
    for pitch in {kernel[0] * kernel[1] * shape[3], -(-kernel[0] * kernel[1] * shape[3] // 64) * 64}:
        check(isa, x, geometry, 0, 0, geometry.rows, pitch)
        check(isa, x, geometry, 0, geometry.rows - 1, 1, pitch)
