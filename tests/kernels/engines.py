"""Engines driven by themselves, without the dispatch that picks them."""

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np

from fgq.kernels.products import driver
from fgq.kernels.products.driver import Job, aligned, bind, plan_job
from fgq.kernels.products.epilogue import Sums
from fgq.kernels.products.gather import Geometry
from fgq.kernels.products.weights import zero_point_bias
from fgq.kernels.simd.atomics import interpreted_add
from fgq.kernels.window import Window


@contextmanager
def interpreted_loop() -> Iterator[None]:
    """Let Python run the loop over blocks: it compiles slower than a kernel, and anew for each."""
    compose = driver.compose

    def interpreted(tier, block, stage):
        run = compose(tier, block, stage)
        return getattr(run, "py_func", run)

    with mock.patch.object(driver, "compose", interpreted), mock.patch.object(driver, "add", interpreted_add):
        yield


def drive(job: Job, weights, x, bias, epilogue, out, residual=None) -> None:
    """Run a layer once, with scratch of its own."""
    scratch = aligned((job.threads, job.scratch_bytes), np.uint8)
    bind(job, weights, x, bias, epilogue, out, residual, scratch)()


def run_engine(prepare, weight, isa, x, *, compact, bias=None, x_zero=0, window=None, threads=1):
    """Return the sums that a kernel module's engine gives, shaped like those of the reference."""
    window, outputs = window or Window(), weight.shape[0]
    bias = np.zeros(outputs, np.int32) if bias is None else bias
    engine = prepare(weight.matrices(window.groups), isa, compact=compact)
    image, taps = (x, weight.shape[1:3]) if x.ndim == 4 else (x[None, :, None, :], (1, 1))
    geometry = Geometry.of(image.shape, taps, window, x_zero)
    out = np.full((geometry.images, *geometry.size, outputs), -1, np.int32)
    job = plan_job(engine, geometry, outputs // window.groups, threads)
    drive(job, engine.weights, image, zero_point_bias(weight, bias, x_zero), Sums(), out)
    return out if x.ndim == 4 else out.reshape(len(x), outputs)


def before_a_forbidden_page(x):
    """Return a copy of an array whose last byte is the last one that may be read."""
    page = mmap.PAGESIZE
    size = -(-x.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    begin = np.frombuffer(memory, np.uint8).ctypes.data
    if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(begin + size), page, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(memory, x.dtype, x.size, size - x.nbytes).reshape(x.shape)
    copy[...] = x
    return copy
