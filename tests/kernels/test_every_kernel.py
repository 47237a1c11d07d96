"""Every kernel on every instruction set that this machine has, against the reference: array equality."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from engines import interpreted_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import KINDS, draw_activations, draw_bias, draw_weight, fitting_size, wanted_sums

from fgq.errors import KernelError
from fgq.kernels import Weight, Window
from fgq.kernels.products.dispatch import KERNELS, MOST_ADDED, Kernel, Memory
from fgq.kernels.products.layer import Layer, Prepared, packable
from fgq.kernels.simd.isa import available

ALL = [k for k in KERNELS.values() if k.isa in available() and k.module != "reference"]
BEST = {min((k for k in ALL if k.module == module), key=ALL.index) for module in {k.module for k in ALL}}
"""Each kernel for the best instruction set; the others take minutes to compile."""

HERE = [k if k in BEST else pytest.param(k, marks=pytest.mark.slow) for k in ALL]
PLAIN = [k for k in HERE if not getattr(k, "values", [k])[0].depthwise]
MEMORIES = ["fast", "compact"]
HELD = [
    pytest.param(kernel, memory, marks=getattr(param, "marks", ()))
    for param in PLAIN
    for kernel in getattr(param, "values", [param])
    for memory in (MEMORIES if kernel.compact else MEMORIES[:1])
]
"""Kernels with the ways in which they can hold weights."""

GROUP_SIZES = st.sampled_from([1, 4, 16, 64, 100])
X_ZEROS = st.sampled_from([0, 1, 128, 255])
BITS = st.sampled_from([4, 8])
SEEDS = st.integers(0, 2**32 - 1)


def by_name(kernel):
    return kernel.name if isinstance(kernel, Kernel) else None


def kinds_of(kernel):
    return KINDS if kernel.largest_code > MOST_ADDED else KINDS[:3]


class Forced(Layer):
    """A layer that one kernel runs, whatever would be picked."""

    def __init__(self, weight, kernel, memory="fast", **options):
        self._forced = kernel, memory
        super().__init__(weight, **options)

    def kernel(self, rows=64):
        return self._forced[0]

    def _memory(self, kernel, weight):
        wanted = self._forced[1]
        if kernel.multiplication_free or not kernel.compact:
            return Memory.FAST
        if wanted == "compact" and not packable(weight):
            return Memory.FAST
        return Memory(wanted)


def check(layer, x, threads=1):
    acc = layer(x, threads=threads)
    assert acc.dtype == np.int32
    np.testing.assert_array_equal(acc, wanted_sums(layer.weight, layer.bias, layer.x_zero, layer.window, x))


@pytest.mark.parametrize("kernel", PLAIN, ids=by_name)
@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 150),
    reduction=st.integers(1, 320),
    outputs=st.integers(1, 70),
    group_size=GROUP_SIZES,
    x_zero=X_ZEROS,
    bits=BITS,
    memory=st.sampled_from(MEMORIES),
    threads=st.integers(1, 3),
    seed=SEEDS,
)
def test_matmul(kernel, rows, reduction, outputs, group_size, x_zero, bits, memory, threads, seed):
    rng = np.random.default_rng(seed)
    x_zero %= 1 << bits
    if kernel.most_rows is not None:
        rows = rows % (kernel.most_rows + 1)
    weight = draw_weight(rng, rng.choice(kinds_of(kernel)), (outputs, reduction), group_size)
    layer = Forced(weight, kernel, memory, x_zero=x_zero, bias=draw_bias(rng, outputs), activation_bits=bits)
    with interpreted_loop():
        check(layer, draw_activations(rng, (rows, reduction), bits), threads)


@pytest.mark.parametrize("kernel", HERE, ids=by_name)
@settings(deadline=None, max_examples=60)
@given(
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 20),
    conv_groups=st.sampled_from([1, 1, 2, 5]),
    taps=st.sampled_from([(1, 1), (3, 3), (1, 3), (5, 2), (4, 4), (7, 7)]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    dilations=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    group_size=GROUP_SIZES,
    x_zero=X_ZEROS,
    bits=BITS,
    memory=st.sampled_from(MEMORIES),
    threads=st.integers(1, 3),
    seed=SEEDS,
)
def test_conv2d(
    kernel, batch, size, inputs, outputs, conv_groups, taps, strides, pads, dilations,
    group_size, x_zero, bits, memory, threads, seed,
):  # fmt: skip
    if kernel.depthwise:
        inputs, conv_groups = 1, inputs + 1
    window = Window(strides=strides, pads=pads, dilations=dilations, groups=conv_groups)
    if kernel.most_rows is not None:  # no more output pixels than that
        batch, size = 1, (1, 1)
    size = fitting_size(size, taps, window)
    if kernel.most_rows is not None and np.prod(window.output_size(*size, taps)) > kernel.most_rows:
        return
    rng = np.random.default_rng(seed)
    x_zero %= 1 << bits
    shape = (outputs * conv_groups, *taps, inputs)
    weight = draw_weight(rng, rng.choice(kinds_of(kernel)), shape, group_size)
    layer = Forced(
        weight, kernel, memory, window=window, x_zero=x_zero, bias=draw_bias(rng, shape[0]),
        activation_bits=bits,
    )  # fmt: skip
    with interpreted_loop():
        check(layer, draw_activations(rng, (batch, *size, inputs * conv_groups), bits), threads)


@pytest.mark.skipif(numba.config.DISABLE_JIT, reason="takes minutes when interpreted")
@pytest.mark.parametrize(("kernel", "memory"), HELD, ids=by_name)
@pytest.mark.parametrize("group_size", [64, 66_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums(kernel, memory, group_size, sign):
    # 66,000 weights of 127: every partial sum is as large as it can be
    group = (np.arange(66_000) // group_size).astype(np.int32)
    weight = Weight.single(
        np.full((2, 66_000), sign, np.int8), np.full((2, group[-1] + 1), 127, np.uint8), group
    )
    for x_zero in (0, 255):
        layer = Forced(weight, kernel, memory, x_zero=x_zero)
        for rows in (1, 7) if kernel.most_rows else (1, 64):
            for value in (0, 255):
                acc = layer(np.full((rows, 66_000), value, np.uint8))
                np.testing.assert_array_equal(acc, sign * 127 * 66_000 * (value - x_zero))


@pytest.mark.parametrize(("kernel", "memory"), HELD, ids=by_name)
@pytest.mark.parametrize("kind", KINDS)
def test_every_length_of_tails(kernel, memory, kind):
    if kind not in kinds_of(kernel) or (kind, memory) == ("int8", "compact"):
        pytest.skip("the kernel cannot do such codes, or not hold them so")
    rng = np.random.default_rng(9)
    for reduction in (1, 2, 3, 4, 5, 15, 17, 31, 48, 63, 64, 65, 66, 67, 68, 127, 128, 129, 192):
        for outputs in (1, 16, 17, 64):
            weight = draw_weight(rng, kind, (outputs, reduction), 16)
            layer = Forced(weight, kernel, memory, bias=draw_bias(rng, outputs))
            rows = int(rng.integers(1, (kernel.most_rows or 40) + 1))
            with interpreted_loop():
                check(layer, draw_activations(rng, (rows, reduction), 8))


@pytest.mark.parametrize("kernel", HERE, ids=by_name)
def test_a_convolution_of_many_blocks_for_any_number_of_threads(kernel):
    if kernel.most_rows is not None:
        pytest.skip("made for few rows")
    rng = np.random.default_rng(4)
    channels, groups = (1, 48) if kernel.depthwise else (48, 1)
    weight = draw_weight(rng, "ternary", (48, 3, 3, channels), 16)
    window = Window(pads=(1, 1, 1, 1), groups=groups)
    layer = Forced(weight, kernel, window=window, x_zero=77, bias=draw_bias(rng, 48))
    x = draw_activations(rng, (2, 33, 31, 48), 8)
    for threads in (1, 2, 3, 8):
        check(layer, x, threads)


@pytest.mark.parametrize("kernel", HERE, ids=by_name)
def test_arrays_in_any_order_read_only_or_empty(kernel):
    rng = np.random.default_rng(6)
    rows = kernel.most_rows or 25
    window = Window(groups=4) if kernel.depthwise else None
    weight = draw_weight(rng, "ternary", (4, 2, 2, 1) if window else (4, 6), 4)
    x = draw_activations(rng, (3, 5, 5, 4) if window else (rows, 6), 8)
    layer = Forced(weight, kernel, window=window, x_zero=1, bias=draw_bias(rng, 4))
    wanted = layer(x)
    (plane,) = weight.planes
    turned = [np.asfortranarray(array) for array in (plane.codes, plane.alpha, weight.group, x)]
    for array in turned:
        array.flags.writeable = False
    again = Forced(Weight.single(*turned[:3]), kernel, window=window, x_zero=1, bias=layer.bias)
    np.testing.assert_array_equal(again(turned[3]), wanted)
    assert layer(x[:0]).shape == (0, *wanted.shape[1:])


@pytest.mark.parametrize("kernel", HERE, ids=by_name)
def test_threads_may_run_the_same_layer_at_once(kernel):
    rng = np.random.default_rng(7)
    window = Window(pads=(1, 1, 1, 1), groups=8) if kernel.depthwise else None
    weight = draw_weight(rng, "ternary", (16, 3, 3, 1) if window else (16, 64), 16)
    layer = Forced(weight, kernel, window=window, x_zero=5)
    rows = kernel.most_rows or 70
    inputs = [draw_activations(rng, (2, 9, 9, 8) if window else (rows, 64), 8) for _ in range(16)]
    alone = [layer(x) for x in inputs]
    gate = threading.Barrier(4)

    def run(x):
        if gate.n_waiting < 4 and not gate.broken:
            gate.wait(timeout=60)
        return layer(x, threads=2)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, inputs))
    np.testing.assert_array_equal(together, alone)


def test_weights_are_prepared_once():
    weight = draw_weight(np.random.default_rng(1), "ternary", (8, 64), 16)
    layer = Layer(weight)
    prepared = layer.prepare(100)
    assert isinstance(prepared, Prepared)
    assert layer.prepare(1000) is prepared
    assert prepared.resident_bytes > 0


def test_what_cannot_be_packed_is_refused_where_packing_is_asked_for():
    weight = draw_weight(np.random.default_rng(1), "ternary", (8, 64), 6)
    if not any(kernel.compact for kernel in ALL):
        pytest.skip("this machine has no such kernel")
    from fgq.kernels import prepare_matmul

    layer = prepare_matmul(weight, kernel="dot", memory="compact")
    with pytest.raises(KernelError, match="begin at 0, 6, 12, 18"):
        layer(np.zeros((64, 64), np.uint8))
