"""Sessions that run for long: shapes that come and go, and many callers."""

import gc
import threading
from pathlib import Path

import numpy as np
import pytest

from fgq import Session, convert

TEXT = """(float[N,3,S,S] x) => (float y, float z) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, v)
    d = Add(c, b)
    e = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
    s = Selu(e)
    f = GlobalAveragePool(e)
    g = Flatten(f)
    y = MatMul(g, u)
    z = ReduceMean<axes=[2,3], keepdims=0>(s)
}"""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def model(make_model):
    weights = {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3), "u": normal(8, 5)}
    calibration = {"x": normal(8, 3, 8, 8)}
    return convert(make_model(TEXT, weights), calibration=calibration, group_size=4, recipe="fgq").model


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])


def test_ten_thousand_runs_do_not_grow(model):
    if not Path("/proc/self/statm").exists():
        pytest.skip("there is no /proc here")
    session = Session(model.SerializeToString(), threads=1)
    feeds = [{"x": normal(batch, 3, size, size)} for batch in (1, 2, 3) for size in (4, 6, 8, 10)]
    assert len(feeds) > session._programs.KEPT
    for index in range(1000):  # caches, pools and the allocator fill up
        session.run(None, feeds[index % len(feeds)])
    gc.collect()
    before = resident()
    for index in range(9000):
        session.run(None, feeds[(index * index + index) % len(feeds)])
    gc.collect()
    pages = resident() - before
    assert pages * 4096 < 4 << 20


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_callers_at_once(model, run, threads):
    session = Session(model.SerializeToString(), threads=threads)
    feeds = [{"x": normal(1 + index % 3, 3, 8, 8, seed=index)} for index in range(8)]
    wanted = [run(model, feed) for feed in feeds]
    wrong = []

    def work(index):
        for _ in range(40):
            for ours, theirs in zip(session.run(None, feeds[index]), wanted[index], strict=True):
                if not np.allclose(ours, theirs, rtol=1e-6, atol=1e-6):  # a mean in float
                    wrong.append(index)

    callers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong
