"""The samples on which a conversion is checked."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from fgq import convert
from fgq.converters.original import Original
from fgq.errors import DataError, ModelError

RNG = np.random.default_rng(0)


@pytest.fixture
def stale(make_model):
    """A file that keeps the sizes of one sample of width 4, though its axes are open.

    onnxruntime makes a Gemm between two Reshapes of its product, and so takes two samples of width 2 for one.
    """
    weights = {"w": RNG.standard_normal((4, 9)), "c": RNG.standard_normal(9)}
    model = make_model(
        "(float[N,4,D] x) => (float[N,4,9] z) {b = Relu(x) a = MatMul(b, w) y = Add(a, c) z = Relu(y)}",
        {name: array.astype(np.float32) for name, array in weights.items()},
    )
    for name, width in (("b", 4), ("a", 9), ("y", 9)):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, width]))
    return model


def samples(*shape):
    return {"x": RNG.standard_normal(shape).astype(np.float32)}


def test_onnxruntime_takes_sizes_that_the_model_forbids(stale, run):
    wrong, right = samples(2, 4, 2), samples(2, 4, 4)
    assert run(stale, wrong)[0].shape == (1, 4, 9)
    assert "mismatch" in Original(stale).refuses(wrong)
    assert not Original(stale).refuses(right)


def test_random_data_of_such_sizes_are_no_fault_of_fgq(stale):
    _, report = convert(stale, activations="int8-dynamic", group_size=4)
    assert report.self_check is None


def test_calibration_data_of_such_sizes_are_refused(stale):
    with pytest.raises(DataError, match=r"calibration data: the model cannot run on them .*mismatch"):
        convert(stale, calibration=samples(2, 4, 2), group_size=4)
    _, report = convert(stale, calibration=samples(1, 4, 4), group_size=4)
    assert report.self_check is not None


def test_a_model_that_passes_break_is_fgqs_fault(stale, monkeypatch):
    def broken(*_):
        raise ModelError("prepared graph: no")

    monkeypatch.setattr("fgq.conversion.check.check_prepared", broken)
    with pytest.raises(ModelError, match="prepared graph: no"):
        convert(stale, calibration=samples(1, 4, 4), group_size=4)
