"""Small models in a session and in onnxruntime, steps by themselves, and machines with fewer instructions."""

import sys
from collections.abc import Callable

import numpy as np
import pytest

from fgq import Session
from fgq.kernels import warmup  # noqa: F401  all modules of kernels are loaded
from fgq.kernels.products.driver import aligned
from fgq.kernels.simd.isa import BY_NAME, available


@pytest.fixture(scope="session")
def check_steps(run) -> Callable[..., Session]:
    """Compare a session with onnxruntime, whose kernels are given, for feeds of some shapes each."""

    def check(model, *every_feeds, kernels, **options):
        session = Session(model.SerializeToString(), **options)
        assert [step.kernel for step in session.steps()] == kernels
        for feeds in every_feeds:
            expected = run(model, feeds)
            for _ in range(2):  # step by step, and then as a program
                for ours, theirs in zip(session.run(None, feeds), expected, strict=True):
                    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
                    np.testing.assert_array_equal(ours, theirs)
        return session

    return check


@pytest.fixture(scope="session")
def compute() -> Callable[..., np.ndarray]:
    """Bind a step to arrays and call it."""

    def call(step, *arrays, threads=1):
        out = aligned(step.shape(arrays), step.dtype)
        scratch = aligned((step.scratch_bytes(arrays, threads),), np.uint8)
        step.bind(arrays, out, scratch, threads)()
        return out

    return call


@pytest.fixture(params=["avx512", "avx2", "portable"])
def lesser_machine(request, monkeypatch) -> str:
    """Give the operators between layers, and the layers, no more than an instruction set."""
    isa = BY_NAME[request.param]
    if isa not in available():
        pytest.skip("this machine cannot run such code")
    sets = available()[available().index(isa) :]
    for name, module in list(sys.modules.items()):
        if name.startswith("fgq.kernels.") and hasattr(module, "available"):
            monkeypatch.setattr(module, "available", lambda: sets)
    return isa.name
