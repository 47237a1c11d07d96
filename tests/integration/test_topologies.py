"""Whole networks, converted and run: every integer that onnxruntime computes, fgq computes too.

For each layer ConvInteger or MatMulInteger is added to the converted file itself, on the layer's own uint8
activations and its own int8 weights. So one run of onnxruntime gives the activations as they are, and the
sums over them by an operator that knows neither scales nor fusions.
"""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from fgq import Session, convert
from fgq.eval.light_models import light_model
from fgq.eval.topologies import SMALL, TOPOLOGIES
from fgq.graph.ort import saturates
from fgq.kernels.products.dispatch import Wish
from fgq.runtime.steps.products import ProductStep

EXTREMES = [(64, "int8"), (4, "int4")]
SETTINGS = [*EXTREMES, (64, "int4"), (4, "int8")]

REAL = {"Softmax", "LayerNormalization", "Gelu", "Erf"}
"""Operators on real values that both engines compute, each with its own rounding."""

FLOAT_END = {"light_squeezenet", "light_densenet121"}
"""Their last convolution has a float result, which onnxruntime computes by a float convolution."""


def with_sums(model):
    """Return the model with activations and sums of each quantized layer as outputs, and their names."""
    model, result = onnx.ModelProto.FromString(model.SerializeToString()), {}
    producers = {name: node for node in model.graph.node for name in node.output}
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        activation, weight = (producers.get(name) for name in node.input[:2])
        if weight is None or weight.op_type != "DequantizeLinear" or weight.input[1] not in shapes:
            continue  # a product of two activations
        x, _, x_zero = activation.input
        w8, sums = weight.input[0], f"{node.name}_sums"
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.pop("transB", 0):
            model.graph.node.append(helper.make_node("Transpose", [w8], [f"{sums}_weight"], perm=[1, 0]))
            w8 = f"{sums}_weight"
        integer = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
        kept = attributes if node.op_type == "Conv" else {}
        model.graph.node.append(helper.make_node(integer, [x, w8, x_zero], [sums], **kept))
        result[node.name] = x, sums
    for name, kind in [(x, "UINT8") for x, _ in result.values()] + [(s, "INT32") for _, s in result.values()]:
        if all(output.name != name for output in model.graph.output):
            data_type = onnx.TensorProto.DataType.Value(kind)
            model.graph.output.append(helper.make_tensor_value_info(name, data_type, None))
    return model, result


def biases(model):
    """Return the int32 bias of each layer that has one."""
    producers = {name: node for node in model.graph.node for name in node.output}
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    return {
        node.name: numpy_helper.to_array(arrays[producers[node.input[2]].input[0]])
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm") and len(node.input) > 2
    }


def check(model, layers, feeds_of_each_shape, run, wishes, *, float_end=False):
    """Compare sums and outputs, for each of some feeds.

    Parameters
    ----------
    layers : int
        How many quantized layers there must be.
    wishes : sequence of Wish
        The kernels to run; the first is used for the whole session too.
    """
    observed, named = with_sums(model)
    assert len(named) == layers
    bias = biases(model)
    sessions = {wish: Session(model.SerializeToString(), kernels=wish) for wish in wishes}
    for feeds in feeds_of_each_shape:
        names = [output.name for output in observed.graph.output]
        values = dict(zip(names, run(observed, feeds), strict=True))
        for wish, session in sessions.items():
            found = [instruction.step for instruction in session._network.instructions]
            steps = {step.name: step for step in found if isinstance(step, ProductStep)}
            assert steps.keys() == named.keys()
            for name, (x, sums) in named.items():
                expected = values[sums]
                if steps[name].layer.kind == "conv":
                    expected = expected.transpose(0, 2, 3, 1)
                acc = steps[name].accumulate(values[x])
                assert acc.dtype == np.int32
                np.testing.assert_array_equal(acc, expected + bias.get(name, 0), err_msg=f"{wish}: {name}")
        (theirs,) = run(model, feeds)
        # What was added to see the integers has changed none of them.
        np.testing.assert_array_equal(values[model.graph.output[0].name], theirs)
        (ours,) = sessions[wishes[0]].run(None, feeds)
        assert ours.shape == theirs.shape
        assert np.isfinite(theirs).all()
        # Sums of at most a thousand products in float, in another order, and exponentials.
        real = any(node.op_type in REAL for node in model.graph.node)
        tolerance = 1e-6 * np.abs(theirs).max() if float_end or real else 0.0
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def exported():
    """Export a topology once: by its name, and small or not."""
    for package in ("torch", "transformers", "onnxscript"):
        pytest.importorskip(package)
    models = {}

    def export(name, *, small=True):
        if (name, small) not in models:
            network = TOPOLOGIES[name](**(SMALL[name] if small else {}))
            models[name, small] = network.export("torchscript")
        return models[name, small]

    return export


def images(size, batch):
    return {"pixel_values": np.random.default_rng(batch).standard_normal((batch, 3, size, size), np.float32)}


def texts(vocabulary, batch, length):
    rng = np.random.default_rng(batch)
    lengths = rng.integers(1, length, (batch, 1), endpoint=True)
    return {
        "input_ids": rng.integers(0, vocabulary, (batch, length)),
        "attention_mask": (np.arange(length) < lengths).astype(np.int64),
        "token_type_ids": (np.arange(length) >= lengths // 2).astype(np.int64),
    }


def inputs(name, *, small=True):
    """Return calibration feeds, and feeds of batch 1 and 3; texts of two lengths."""
    options = SMALL[name] if small else {}
    if name == "bert":
        vocabulary = options.get("vocabulary", 30522)
        return [texts(vocabulary, 4, 16)], [texts(vocabulary, 1, 7), texts(vocabulary, 3, 11)]
    size = options.get("image_size", 224)
    return [images(size, 4)], [images(size, 1), images(size, 3)]


QUANTIZED = {"resnet50": 21, "mobilenetv2": 53, "convnext": 20, "bert": 14, "vit": 14}
"""Layers of the small forms."""

QUANTIZED_IN_FULL = {"resnet50": 54, "mobilenetv2": 53, "convnext": 59, "bert": 14, "vit": 74}


@pytest.mark.parametrize(
    ("group_size", "activations"),
    [pytest.param(*setting, marks=[] if setting in EXTREMES else pytest.mark.slow) for setting in SETTINGS],
)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topology(exported, run, name, group_size, activations):
    calibration, feeds = inputs(name)
    options = {"group_size": group_size, "activations": activations, "x86_without_vnni": saturates()}
    model = convert(exported(name), calibration=calibration, **options).model
    check(model, QUANTIZED[name], feeds, run, list(Wish))


@pytest.mark.slow
@pytest.mark.parametrize(("group_size", "activations"), EXTREMES)
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_topology_in_full_size(exported, run, name, group_size, activations):
    calibration, feeds = inputs(name, small=False)
    options = {"group_size": group_size, "activations": activations, "x86_without_vnni": saturates()}
    model = convert(exported(name, small=False), calibration=calibration, **options).model
    check(model, QUANTIZED_IN_FULL[name], feeds, run, [Wish.AUTO])


LIGHT = {
    "light_squeezenet": 26,
    "light_shufflenet": 50,
    "light_inception_v1": 58,
    "light_inception_v2": 70,
    "light_resnet50": 54,
    "light_densenet121": 121,
    "light_bvlc_alexnet": 8,
    "light_zfnet512": 8,
    "light_vgg19": 19,
}
"""The networks of 2018, opset 9 and batch 1, and their layers."""

LARGE = {"light_bvlc_alexnet", "light_zfnet512", "light_vgg19"}
"""60 to 144 million weights, most of them in Gemm."""

QUICK = {
    ("light_squeezenet", 64, "int8"),
    ("light_squeezenet", 4, "int4"),
    ("light_shufflenet", 64, "int4"),
    ("light_shufflenet", 4, "int8"),
    ("light_inception_v1", 64, "int8"),
}


@pytest.mark.parametrize(
    ("name", "group_size", "activations"),
    [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
        for case in (
            (name, *setting) for name in LIGHT for setting in (EXTREMES if name in LARGE else SETTINGS)
        )
    ],
)
def test_light_model(run, name, group_size, activations):
    model = light_model(name)
    constants = {tensor.name for tensor in model.graph.initializer}
    (image,) = (value.name for value in model.graph.input if value.name not in constants)
    rng = np.random.default_rng(0)
    feeds = [{image: rng.standard_normal((1, 3, 224, 224), np.float32)} for _ in range(3)]
    options = {"group_size": group_size, "activations": activations, "recipe": "fgq"}
    model = convert(model, calibration=feeds[:2], **options).model
    check(model, LIGHT[name], feeds[2:], run, [Wish.AUTO], float_end=name in FLOAT_END)
