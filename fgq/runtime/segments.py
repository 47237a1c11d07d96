"""Parts of a model that onnxruntime runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime

from fgq import onnx_file
from fgq.errors import DataError, ModelError
from fgq.runtime.plan import Segment
from fgq.runtime.step import Array, Call


class SegmentStep:
    """A segment, loaded into onnxruntime.

    Parameters
    ----------
    segment : Segment
    threads : int or None
        How many threads it uses; None leaves that to onnxruntime.

    Raises
    ------
    ModelError
        If onnxruntime refuses the segment.
    """

    kernel = "onnxruntime"
    tier = ""

    def __init__(self, segment: Segment, threads: int | None) -> None:
        self.segment = segment
        self.name = ", ".join(str(value.name) for value in segment.outputs)
        self._inputs = [str(value.name) for value in segment.inputs]
        self._outputs = [str(value.name) for value in segment.outputs]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        # its threads would go on spinning while the kernels run
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        with onnx_file.on_disk(segment.model) as path:
            try:
                self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's exceptions share no other base
                raise ModelError(
                    f"model: found a part that onnxruntime refuses ({onnx_file.first_line(error)})"
                ) from None

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """Compute the outputs for these inputs.

        Raises
        ------
        DataError
            If onnxruntime cannot run on them.
        """
        try:
            return list(self.session.run(self._outputs, dict(zip(self._inputs, arrays, strict=True))))
        except Exception as error:
            raise DataError(
                f"inputs: found values that the model cannot run on ({onnx_file.first_line(error)})"
            ) from None

    def bind(self, arrays: Sequence[Array], outs: Sequence[Array]) -> Call:
        """Return the call that reads `arrays` and writes `outs`, numbers in C order.

        The call raises where the results have other shapes than `outs`.
        """
        binding = self.session.io_binding()
        for name, array in zip(self._inputs, arrays, strict=True):
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, out in zip(self._outputs, outs, strict=True):
            binding.bind_output(name, "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)
        session, kept = self.session, (arrays, outs)

        def run() -> None:
            assert kept
            session.run_with_iobinding(binding)

        return run


def bindable(array: Any) -> bool:
    """Tell whether onnxruntime can read or write an array in place."""
    return isinstance(array, np.ndarray) and array.dtype.kind in "fiub" and array.size > 0


