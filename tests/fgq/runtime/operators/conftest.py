"""One node at a time, in our operators and in onnxruntime."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fgq.runtime import operators


def _both(
    op_type: str, inputs: list[np.ndarray | None], *, opset: int = 21, outputs: int = 1, **attributes: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the results of our operator and of onnxruntime's."""
    given = [(f"i{index}", array) for index, array in enumerate(inputs) if array is not None]
    names = ["" if array is None else f"i{index}" for index, array in enumerate(inputs)]
    node = helper.make_node(op_type, names, [f"o{index}" for index in range(outputs)], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in given
        ],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=min(10, opset))
    for value in model.graph.output:
        value.ClearField("type")  # onnxruntime infers it
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    operator = operators.find("", op_type)
    assert operator is not None
    ours = operator(inputs, attributes, opset, outputs)
    return list(ours[:outputs]), session.run(None, dict(given))


@pytest.fixture(scope="session")
def both() -> Callable[..., tuple[list[np.ndarray], list[np.ndarray]]]:
    return _both


def _same(*arguments: Any, rtol: float = 0.0, atol: float = 0.0, **options: Any) -> None:
    ours, theirs = _both(*arguments, **options)
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        if rtol or atol:
            np.testing.assert_allclose(found, expected, rtol, atol)
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="session")
def same() -> Callable[..., None]:
    """Compare the results of our operator with onnxruntime's, exactly unless tolerances are given."""
    return _same
