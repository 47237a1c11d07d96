"""Every integer of a converted model against onnxruntime and the ONNX reference evaluator.

A random float model is converted. Then the integers of each layer are computed a second time from the
written file alone: onnxruntime unpacks the weights and sums with ConvInteger and MatMulInteger.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fgq import Session, convert
from fgq.graph.ort import saturates
from fgq.kernels.products.dispatch import Wish
from fgq.runtime.steps.products import ProductStep

GROUP_SIZES = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 100])
ACTIVATIONS = st.sampled_from(["int8", "int4"])
SEEDS = st.integers(0, 2**32 - 1)


def profile(examples):
    return settings(deadline=None, max_examples=examples)


@dataclass(frozen=True)
class FileLayer:
    """What a converted file says of one of its layers, read without the code under test."""

    node: onnx.NodeProto
    weight_index: int
    w8: np.ndarray
    bias: np.ndarray | int
    zero_point: int
    highest: int


def file_layers(model, run):
    """Read the layers of a file by the name of their node; onnxruntime unpacks the weights."""
    producers = {name: node for node in model.graph.node for name in node.output}
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    unpacks = [node for node in model.graph.node if node.op_type == "Unpack"]
    if unpacks:
        only = onnx.ModelProto()
        only.CopyFrom(model)
        for field in ("node", "input", "output"):
            only.graph.ClearField(field)
        only.graph.node.extend(unpacks)
        names = [node.output[0] for node in unpacks]
        only.graph.output.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None) for name in names
        )
        arrays.update(zip(names, run(only, {}), strict=True))

    layers = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            sources = [producers[name].input for name in node.input]
            weight_index = 0 if sources[0][0] in arrays else 1
            activation = sources[1 - weight_index]
            layers[node.name] = FileLayer(
                node=node,
                weight_index=weight_index,
                w8=arrays[sources[weight_index][0]],
                bias=arrays[sources[2][0]] if len(sources) > 2 else 0,
                zero_point=int(arrays[activation[2]]),
                highest=15 if producers[activation[0]].op_type == "Clip" else 255,
            )
    return layers


def sums_model(layer, source):
    """Return a model that computes a layer's sums, without its bias, by ONNX's integer operators."""
    attributes = {a.name: helper.get_attribute_value(a) for a in layer.node.attribute}
    nodes = []

    def transposed(name, rank):
        order = [*range(rank - 2), rank - 1, rank - 2]
        nodes.append(helper.make_node("Transpose", [name], [f"{name}_t"], perm=order))
        return f"{name}_t"

    # x^T w^T is (w x)^T: the weight of a MatMul may stand on the left, and the channels come last.
    left = layer.weight_index == 0
    x = transposed("x", source.ndim) if left or attributes.pop("transA", 0) else "x"
    w = transposed("w", layer.w8.ndim) if left or attributes.pop("transB", 0) else "w"
    if layer.node.op_type == "Conv":
        nodes.append(helper.make_node("ConvInteger", [x, w, "zero"], ["sums"], **attributes))
    else:
        nodes.append(helper.make_node("MatMulInteger", [x, w, "zero"], ["sums"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "sums",
        [
            value("x", onnx.TensorProto.UINT8, source.shape),
            value("zero", onnx.TensorProto.UINT8, []),
        ],
        [value("sums", onnx.TensorProto.INT32, None)],
        [numpy_helper.from_array(layer.w8, "w")],  # a constant, for onnxruntime to add exactly everywhere
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check_sums(model, shape, seed, run):
    """Compare the sums of every kernel on random activations of `shape`, for a model of one layer."""
    (layer,) = file_layers(model, run).values()
    rng = np.random.default_rng(seed)
    source = rng.integers(0, layer.highest, shape, np.uint8, endpoint=True)
    oracle = sums_model(layer, source)
    feeds = {"x": source, "zero": np.array(layer.zero_point, np.uint8)}
    conv = layer.node.op_type == "Conv"
    expected = []
    for (sums,) in (run(oracle, feeds), ReferenceEvaluator(oracle).run(None, feeds)):
        expected.append((sums.transpose(0, 2, 3, 1) if conv else sums) + layer.bias)
    np.testing.assert_array_equal(*expected)
    for wish in Wish:
        (step,) = (
            instruction.step
            for instruction in Session(model.SerializeToString(), kernels=wish)._network.instructions
            if isinstance(instruction.step, ProductStep)
        )
        acc = step.accumulate(source)
        assert acc.dtype == np.int32
        np.testing.assert_array_equal(acc, expected[0], err_msg=f"{wish}: {step.kernel}")


@st.composite
def convolutions(draw):
    """Return the attributes of a Conv, the shapes of its input and its weight."""
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    depthwise = draw(st.booleans()) and groups > 1
    inputs = 1 if depthwise else draw(st.sampled_from([1, 3, 5, 16, 37, 70]))
    outputs = groups * draw(st.integers(1, 6))
    taps = draw(st.sampled_from([(1, 1), (3, 3), (7, 7), (1, 3), (2, 5)]))
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    if auto_pad.startswith("SAME"):
        dilations = 1, 1  # onnxruntime runs no others with it
        strides = tuple(map(min, strides, taps))  # longer ones, which crop the image, stay float
    attributes = {
        "group": groups,
        "strides": strides,
        "dilations": dilations,
    }
    least = [(size - 1) * step + 1 for size, step in zip(taps, dilations, strict=True)]
    if auto_pad == "NOTSET":
        pads = draw(st.tuples(*[st.integers(0, 3)] * 4))
        attributes["pads"] = pads
        least = [max(1, size - pads[i] - pads[i + 2]) for i, size in enumerate(least)]
    else:
        attributes["auto_pad"] = auto_pad
    image = [size + draw(st.integers(0, 6)) for size in least]
    batch = draw(st.integers(1, 2))
    return attributes, (batch, groups * inputs, *image), (outputs, inputs, *taps)


def converted(model, shape, seed, **options):
    rng = np.random.default_rng(seed)
    calibration = {"x": rng.normal(rng.normal(), 1, (3 * shape[0], *shape[1:])).astype(np.float32)}
    return convert(model, calibration=calibration, **options).model


@profile(40)
@given(
    conv=convolutions(),
    bias=st.booleans(),
    group_size=GROUP_SIZES,
    activations=ACTIVATIONS,
    first_last=st.booleans(),
    seed=SEEDS,
)
def test_convolution_sums(make_model, run, conv, bias, group_size, activations, first_last, seed):
    attributes, shape, weight = conv
    rng = np.random.default_rng(seed)
    weights = {"w": rng.standard_normal(weight).astype(np.float32)}
    if bias:
        weights["b"] = rng.standard_normal(weight[0]).astype(np.float32)
    model = make_model(
        f"(float[{','.join(map(str, shape))}] x) => (float y) {{y = Conv(x, {', '.join(weights)})}}", weights
    )
    model.graph.node[0].attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())
    model = converted(
        model, shape, seed, group_size=group_size, activations=activations, first_last_int8=first_last
    )
    check_sums(model, shape, seed, run)


@st.composite
def products(draw):
    """Return the shapes of both sides of a MatMul, and which one is the weight."""
    K, rows, M = (
        draw(st.sampled_from([1, 3, 16, 64, 100, 133])),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 9)),
    )
    batch = draw(st.sampled_from([(), (3,), (1,), (2, 3)]))
    broadcast = draw(st.sampled_from([(), (1,) * len(batch), batch]))
    activation, weight = draw(st.permutations([batch, broadcast]))
    if draw(st.booleans()):
        return (*activation, rows, K), (*weight, K, M), 1
    return (*activation, K, rows), (*weight, M, K), 0


@profile(40)
@given(
    product=products(), group_size=GROUP_SIZES, activations=ACTIVATIONS, first_last=st.booleans(), seed=SEEDS
)
def test_product_sums(make_model, run, product, group_size, activations, first_last, seed):
    shape, weight, index = product
    rng = np.random.default_rng(seed)
    model = make_model(
        f"(float[{','.join(map(str, shape))}] x) => (float y) {{y = MatMul({'x, w' if index else 'w, x'})}}",
        {"w": rng.standard_normal(weight).astype(np.float32)},
    )
    model = converted(
        model, shape, seed, group_size=group_size, activations=activations, first_last_int8=first_last
    )
    check_sums(model, shape, seed, run)


@profile(40)
@given(
    rows=st.integers(1, 5),
    reduction=st.sampled_from([1, 3, 16, 64, 100, 133]),
    outputs=st.integers(1, 9),
    trans_a=st.booleans(),
    trans_b=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5, -2.0]),
    beta=st.sampled_from([1.0, 0.25, -1.0]),
    addend=st.sampled_from(["none", "scalar", "one", "row", "1 x row", "column", "full", "computed"]),
    group_size=GROUP_SIZES,
    activations=ACTIVATIONS,
    first_last=st.booleans(),
    seed=SEEDS,
)
def test_gemm_sums(
    make_model,
    run,
    rows,
    reduction,
    outputs,
    trans_a,
    trans_b,
    alpha,
    beta,
    addend,
    group_size,
    activations,
    first_last,
    seed,
):
    rng = np.random.default_rng(seed)
    shape = (reduction, rows) if trans_a else (rows, reduction)
    weight = (outputs, reduction) if trans_b else (reduction, outputs)
    shapes = {
        "scalar": (),
        "one": (1,),
        "row": (outputs,),
        "1 x row": (1, outputs),
        "column": (rows, 1),
        "full": (rows, outputs),
    }
    weights = {"w": rng.standard_normal(weight).astype(np.float32)}
    if addend in shapes:
        weights["c"] = np.asarray(rng.standard_normal(shapes[addend]), np.float32)
    before = "c = ReduceMax<keepdims=0>(x)\n" if addend == "computed" else ""
    operands = "x, w" if addend == "none" else "x, w, c"
    model = make_model(
        f"(float[{','.join(map(str, shape))}] x) => (float y) {{{before} y = Gemm<transA={int(trans_a)}, "
        f"transB={int(trans_b)}, alpha={alpha}, beta={beta}>({operands})}}",
        weights,
    )
    model = converted(
        model, shape, seed, group_size=group_size, activations=activations, first_last_int8=first_last
    )
    check_sums(model, shape, seed, run)


ACTIVATION_FUNCTIONS = st.sampled_from(
    [
        "{b} = Relu({a})",
        "{b} = Clip({a}, zero, six)",
        "{b} = Identity({a})",
        "{b} = HardSwish({a})",
        "{b} = Tanh({a})",
    ]
)


@profile(12)
@given(
    functions=st.lists(ACTIVATION_FUNCTIONS, min_size=3, max_size=3),
    group=st.sampled_from([1, 2, 8]),
    pooling=st.sampled_from(["MaxPool<kernel_shape=[2,2], strides=[2,2]>", "GlobalAveragePool", "Identity"]),
    group_size=GROUP_SIZES,
    activations=ACTIVATIONS,
    batch=st.integers(1, 3),
    seed=SEEDS,
)
def test_integers_between_layers(
    make_model, check_integers, functions, group, pooling, group_size, activations, batch, seed
):
    rng = np.random.default_rng(seed)
    size = {"MaxPool": 8 * 9, "GlobalAveragePool": 8, "Identity": 8 * 36}[pooling.split("<")[0]]
    shapes = {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "w2": (8, 8 // group, 3, 3),
        "w3": (size, 11),
        "b3": (11,),
        "w4": (11, 4),
    }
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    first, second, third = functions
    model = make_model(
        f"""(float[N,3,6,6] x) => (float y) {{
            a = Conv<pads=[1,1,1,1]>(x, w1, b1)
            {first.format(a="a", b="b")}
            c = Conv<pads=[1,1,1,1], group={group}>(b, w2)
            {second.format(a="c", b="d")}
            e = {pooling}(d)
            f = Flatten(e)
            g = Gemm(f, w3, b3)
            {third.format(a="g", b="h")}
            y = MatMul(h, w4)
        }}""",
        weights | {"zero": np.float32(0), "six": np.float32(6)},
    )
    model = converted(model, (6, 3, 6, 6), seed, group_size=group_size, activations=activations)
    check_integers(model, {"x": rng.standard_normal((batch, 3, 6, 6)).astype(np.float32)})


@pytest.mark.parametrize("activations", ["int8", "int4"])
@pytest.mark.parametrize(
    ("operands", "shape", "weight"),
    [
        ("x, w", (16,), (16, 5)),
        ("w, x", (16,), (5, 16)),
        ("x, w", (16,), (3, 16, 5)),
        ("w, x", (16,), (2, 3, 5, 16)),
    ],
)
def test_products_with_a_vector(make_model, check_integers, operands, shape, weight, activations):
    rng = np.random.default_rng(0)
    model = make_model(
        f"(float[16] x) => (float y) {{ y = MatMul({operands}) }}",
        {"w": rng.standard_normal(weight, np.float32)},
    )
    feeds = {"x": rng.standard_normal(shape, np.float32)}
    options = {"group_size": 4, "first_last_int8": False, "activations": activations}
    result = convert(model, calibration=[feeds], **options).model
    # onnxruntime multiplies by a constant on the left in float: sums of 16 products.
    check_integers(result, feeds, rtol=1e-6)


PRODUCTS = """({x}) => (float y) {{
    a = MatMul({first})
    b = Transpose<perm=[0,2,1]>(a)
    c = MatMul(w2, b)
    d = Transpose<perm=[0,2,1]>(c)
    e = Add(d, bias)
    y = MatMul(e, w3)
}}"""


@pytest.mark.parametrize("activations", ["int8", "int4"])
@pytest.mark.parametrize("first", ["x, w1", "x, w", "w, x"])
def test_products_in_a_row(make_model, run, first, activations):
    """Products with batched, right and left constants, quantized between and behind a Transpose."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 8), "w": (2, 8, 8), "w2": (8, 8), "w3": (8, 5), "bias": (8,)}
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    feeds = {"x": rng.standard_normal((2, 8, 8), np.float32)}
    model = make_model(PRODUCTS.format(x="float[2,8,8] x", first=first), weights)
    # No option makes onnxruntime's sums exact where a constant stands on the left; small weights do.
    options = {"group_size": 4, "activations": activations, "x86_without_vnni": saturates()}
    result = convert(model, calibration=[feeds] * 2, **options)
    assert all(layer.is_converted for layer in result.report.layers)
    (theirs,) = run(result.model, feeds)
    for wish in Wish:
        (ours,) = Session(result.model.SerializeToString(), kernels=wish).run(None, feeds)
        # Where onnxruntime computes in float, a value near a tie may move by one step of the next layer.
        step = np.abs(theirs).max() / (255 if activations == "int8" else 15)
        np.testing.assert_allclose(ours, theirs, 0, step)
