"""Every engine computes what our kernels compute."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from fgq.eval.bench import baselines, models
from fgq.eval.bench.drawn_layers import Quantizer, draw_layer, prepare
from fgq.eval.bench.shapes import Conv, MatMul
from fgq.graph.ort import open_session, saturates, session_options
from fgq.kernels import ternary_matmul

MATMUL = MatMul(rows=5, inputs=192, outputs=48)
CONVS = [
    Conv(size=7, channels=16, outputs=32, taps=3),
    Conv(size=8, channels=64, outputs=16, taps=1, stride=2),
    Conv(size=16, channels=3, outputs=16, taps=7, stride=2, ternary=False),
]


def on_the_grid(shape, group_size=64):
    """Draw a layer whose activations the 8-bit quantizer represents exactly."""
    layer = draw_layer(shape, group_size)
    quantizer = layer.input_quantizer(8)
    integers = layer.integers(8).astype(np.float32)
    return replace(layer, x=(np.float32(quantizer.scale) * (integers - quantizer.zero_point)))


def ours(layer):
    return prepare(layer, wish="auto", memory="fast", bits=8, threads=1).run()


def close(found, wanted, share):
    """Compare to a share of the largest value."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=share * np.abs(wanted).max())


@pytest.fixture(scope="module", autouse=True)
def _exact():
    """Let onnxruntime add exactly on processors without VNNI, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_options", lambda threads: session_options(threads=threads))
        yield


@pytest.fixture(scope="module")
def matmul():
    layer = on_the_grid(MATMUL)
    return layer, ours(layer), baselines.prepare_baselines(layer, 1)


def test_all_of_onnxruntime_loads(matmul):
    _, _, (ready, missing) = matmul
    names = {
        baselines.FLOAT,
        baselines.QLINEAR_MATMUL,
        baselines.MATMUL_INTEGER,
        baselines.NBITS_2,
        baselines.NBITS_4,
    }
    assert names <= set(ready)
    assert set(missing) <= {baselines.OPENVINO}


@pytest.mark.parametrize(
    ("name", "share"),
    [
        (baselines.FLOAT, 1e-5),  # sums of 192 products in float32
        (baselines.QLINEAR_MATMUL, 0.5 * 8 / 255),  # half a step of the output, which reaches beyond 1
        (baselines.MATMUL_INTEGER, 0.02),  # the activations are quantized again, by their own range
        (baselines.NBITS_2, 0.02),  # .., a block at a time
        (baselines.NBITS_4, 0.02),
        (baselines.OPENVINO, 1e-2),  # may compute in bfloat16
    ],
)
def test_a_matrix_product_is_the_same(matmul, name, share):
    _, wanted, (ready, missing) = matmul
    if name in missing:
        pytest.skip(missing[name])
    close(ready[name].run(), wanted, share)


def test_the_integers_of_matmul_integer_are_ours():
    layer = draw_layer(MATMUL, 4)
    model = models.dynamic_matmul(layer)
    for name, type_ in (("xq", onnx.TensorProto.UINT8), ("zero", onnx.TensorProto.UINT8), ("sums", 6)):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, type_, None))
    session = open_session(model.SerializeToString(), "model")
    integers, zero, sums = session.run(["xq", "zero", "sums"], {"x": layer.x})
    np.testing.assert_array_equal(ternary_matmul(integers, layer.weight, x_zero=int(zero)), sums)


def test_ternary_groups_of_a_block_are_exact_in_two_bits():
    layer = draw_layer(MATMUL, models.BLOCK)
    model = models.blockwise_matmul(layer, 2)
    packed, scales = (onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    codes = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1).reshape(48, 3, 64)
    values = (codes.astype(np.float32) - 2) * scales[:, :, None]
    np.testing.assert_array_equal(values.reshape(48, 192), models.float_weights(layer))


@pytest.mark.parametrize("shape", CONVS, ids=str)
def test_a_convolution_is_the_same(shape):
    layer = on_the_grid(shape)
    wanted = ours(layer)
    # onnxruntime has no exact form of the other where it saturates
    orders = (False,) if saturates() else (False, True)
    for model in (models.integer_conv(layer, channels_last=last) for last in orders):
        found = baselines.OnnxruntimeCall.of(layer, model, 1)()
        if found.shape != wanted.shape:
            found = np.moveaxis(found, 1, -1)
        np.testing.assert_array_equal(found, wanted)
    real = baselines.OnnxruntimeCall.of(layer, models.float_conv(layer), 1)()
    step = Quantizer.signed(8)
    clipped = np.clip(np.moveaxis(real, 1, -1) / step.scale + step.zero_point, 0, 255)
    np.testing.assert_allclose(wanted, clipped, rtol=0, atol=0.501)  # rounded to the nearest


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", CONVS[:2], ids=str)
def test_openvino_convolves_the_same(shape, channels_last):
    pytest.importorskip("openvino")
    layer = on_the_grid(shape)
    model = models.quantized_conv(layer, channels_last=channels_last)
    found = baselines.OpenvinoCall.of(layer, model, 1)()
    if not channels_last:
        found = np.moveaxis(found, 1, -1)
    assert np.abs(found.astype(int) - ours(layer)).max() <= 1  # it rounds in another place


def test_the_blocked_layout_leaves_only_the_convolution():
    layer = on_the_grid(CONVS[1])
    try:
        model = baselines.blocked_conv(layer)
    except ValueError as error:
        pytest.skip(str(error))
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    blocked = baselines.OnnxruntimeCall.of(layer, model, 1)()
    assert np.isfinite(blocked).all()
    assert blocked.size == 16 * 4 * 4


def test_an_engine_that_refuses_is_missing_with_its_reason(monkeypatch):
    def refuse(self, model, x, threads):
        raise RuntimeError("no such engine\nin many lines")

    monkeypatch.setattr(baselines.OpenvinoCall, "__init__", refuse)
    ready, missing = baselines.prepare_baselines(draw_layer(MATMUL, 64), 1)
    assert missing == {baselines.OPENVINO: "static scales: no such engine"}
    assert baselines.OPENVINO not in ready
    assert ready[baselines.FLOAT].form == "MatMul"
