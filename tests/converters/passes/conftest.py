"""Run passes on small models and compare with the models before, in onnxruntime."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fgq.converters.passes import prepare


@pytest.fixture
def prepared(run: Callable[..., list[np.ndarray]]) -> Callable[..., Counter[str]]:
    """Prepare a model, compare its outputs and count its operators, those of subgraphs included."""

    def prepare_and_compare(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> Counter[str]:
        expected = run(model, feeds)
        found = ir.from_proto(model)
        prepare(found)
        after = ir.to_proto(found)
        onnx.checker.check_model(after)
        assert [output.name for output in after.graph.output] == [o.name for o in model.graph.output]
        constants = {tensor.name for tensor in after.graph.initializer}
        assert not constants & {value.name for value in after.graph.input}
        kept = {value.name for value in after.graph.input}
        results = run(after, {name: array for name, array in feeds.items() if name in kept})
        for ours, theirs in zip(results, expected, strict=True):
            assert ours.dtype == theirs.dtype
            # Sums of at most 100 float32 products, reordered: some 100 * 2**-24 of the largest.
            np.testing.assert_allclose(ours, theirs, 0, 1e-5 * max(1.0, np.abs(theirs).max(initial=0.0)))
        names = [node.name for node in found.graph]
        assert len(set(names)) == len(names)
        return Counter(node.op_type for node in found.graph.all_nodes())

    return prepare_and_compare
