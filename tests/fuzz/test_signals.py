"""Conversions that signals end: tests/fuzz/signals.py tries more moments."""

import sys

import pytest
import signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals")


@pytest.mark.parametrize(("kind", "resume"), [("TERM", False), ("INT", True)])
def test_a_few_moments(kind, resume):
    assert signals.run(kind, 2, 5, resume) == []


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", signals.KINDS)
def test_many_moments(kind, resume):
    assert signals.run(kind, 20, 7, resume) == []
