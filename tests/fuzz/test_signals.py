"""Conversions that signals end: tests/fuzz/signals.py tries more moments."""

import sys

import pytest
import signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such signals")


def test_a_few_moments():
    assert signals.run("TERM", 2, 5, resume=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("kind", signals.KINDS)
def test_many_moments(kind, resume):
    assert signals.run(kind, 20, 7, resume) == []
