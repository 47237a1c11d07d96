"""How rows are shared out: each is computed once, by whatever number of threads."""

import numpy as np
import pytest

from fgq.kernels.operators.real_rows import RealRows


class Counted(RealRows):
    """Adds 1 to each element of the rows that it is asked for."""

    def _run(self, begin, end, scratch):
        assert scratch.dtype == np.float32
        assert scratch.size >= self._width + 2 * self._together
        self._y[begin * self._width : end * self._width] += 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("shape", "width"), [((5, 7), 7), ((1000, 3), 3), ((3, 20_000), 20_000), ((4100,), 1024), ((0, 4), 4)]
)
def test_every_row_once(shape, width, threads):
    y = np.zeros(shape, np.float32)
    call = Counted(y, y, width, threads)
    for times in (1, 2):
        call()
        np.testing.assert_array_equal(y, times)
