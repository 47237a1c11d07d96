"""One layer quantized alone, against the same put together by hand and run in onnxruntime."""

import copy
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from scipy import special

from fgq import convert
from fgq.converters.original import Original
from fgq.converters.passes import prepare
from fgq.converters.passes.move_scales import repeat_moves
from fgq.converters.reader import read_float_model
from fgq.errors import DataError, ModelError
from fgq.eval.report.layer_rows import pair_layers
from fgq.eval.report.sensitivity import Sensitivity, divergence
from fgq.format import container


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


X = normal(70, 3, 8, 8)
FEEDS = [{"x": X[:7]}, {"x": X[7:20]}]


def silent(done, total):
    """Show no progress."""


def opened(files):
    model, converted = read_float_model(files.float_model), container.load(files.converted)
    prepare(model)
    repeat_moves(model, converted)
    return model, converted, [entry.quantized for entry in pair_layers(model, converted) if entry.quantized]


def measured(files, *, classifier):
    model, converted, pairs = opened(files)
    found = Sensitivity(model, FEEDS, classifier=classifier).of_layers(pairs, converted, silent)
    return {node.name: value for node, value in found.items()}


def alone(files, name, run):
    """Return what the float model gives with one layer as the converted model has it."""
    model, converted = onnx.load(files.float_model), onnx.load(files.converted)
    node = next(node for node in model.graph.node if node.name == name)
    other = next(node for node in converted.graph.node if node.name == name)
    makers = {output: maker for maker in converted.graph.node for output in maker.output}
    constants = {each.name: numpy_helper.to_array(each) for each in converted.graph.initializer}

    def computed(values):
        """Let onnxruntime compute constants, as the Unpack function and what dequantizes it."""
        exposed = copy.deepcopy(converted)
        del exposed.graph.output[:]
        exposed.graph.output.extend(helper.make_tensor_value_info(value, 1, None) for value in values)
        return run(exposed, {"x": X[:1]})

    quantize = makers[makers[other.input[0]].input[0]]
    scale, zero = (constants[each] for each in quantize.input[1:])
    where = list(model.graph.node).index(node)
    names = list(other.input[1:])
    for index, array in enumerate(computed(names), 1):
        model.graph.initializer.append(numpy_helper.from_array(array, f"new{index}"))
        if len(node.input) <= index:
            node.input.append("")
        node.input[index] = f"new{index}"
    model.graph.initializer.extend(
        [numpy_helper.from_array(scale, "new_scale"), numpy_helper.from_array(zero, "new_zero")]
    )
    chain = [
        helper.make_node("QuantizeLinear", [node.input[0], "new_scale", "new_zero"], ["new_q"]),
        helper.make_node("DequantizeLinear", ["new_q", "new_scale", "new_zero"], ["new_x"]),
    ]
    node.input[0] = "new_x"
    for place, each in enumerate(chain):
        model.graph.node.insert(where + place, each)
    if node.op_type == "MatMul":  # its bias is added behind it
        add = next(each for each in converted.graph.node if each.name == "layer_y")
        (bias,) = (each for each in add.input if each in constants)
        before = next(each for each in model.graph.initializer if each.name == "b")
        before.CopyFrom(numpy_helper.from_array(constants[bias], "b"))
    return np.concatenate([run(model, feed)[0] for feed in FEEDS])


LAYERS = ("layer_a", "layer_d", "layer_m")


@pytest.mark.parametrize("name", LAYERS)
def test_divergence_of_one_layer(files, run, name):
    exact = np.concatenate([run(onnx.load(files.float_model), feed)[0] for feed in FEEDS])
    p, q = (special.softmax(each.astype(np.float64), axis=1) for each in (exact, alone(files, name, run)))
    expected = special.rel_entr(p, q).sum(axis=1).mean()
    assert expected > 0
    # Both models run in float32 in onnxruntime, cut into other graphs, which may order sums otherwise.
    assert measured(files, classifier=True)[name] == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", LAYERS)
def test_relative_error_of_one_layer(files, run, name):
    exact = np.concatenate([run(onnx.load(files.float_model), feed)[0] for feed in FEEDS]).astype(np.float64)
    expected = ((alone(files, name, run) - exact) ** 2).sum() / (exact**2).sum()
    assert measured(files, classifier=False)[name] == pytest.approx(expected, rel=1e-2)


def test_the_whole_model(files, run):
    model, converted, _ = opened(files)
    exact, found = (
        np.concatenate([run(path, feed)[0] for feed in FEEDS]).astype(np.float64)
        for path in (files.float_model, files.converted)
    )
    p, q = (special.softmax(each, axis=1) for each in (exact, found))
    sensitivity = Sensitivity(model, FEEDS, classifier=True)
    original = Original(files.float_model)
    assert sensitivity.of_model(converted, original) == pytest.approx(
        special.rel_entr(p, q).sum(1).mean(), rel=1e-2
    )
    error = Sensitivity(model, FEEDS, classifier=False).of_model(converted, original)
    assert error == pytest.approx(((found - exact) ** 2).sum() / (exact**2).sum(), rel=1e-2)


def test_the_whole_model_is_judged_by_what_came_in(files, run):
    """Not by the graph after the passes, which may be wrong."""
    model, converted, _ = opened(files)
    output = model.graph.outputs[0]
    last = output.producer()
    spoiled = model.graph.initializers[last.inputs[1].name]
    spoiled.const_value = ir.Tensor(-spoiled.const_value.numpy(), name=spoiled.name)
    right = Sensitivity(opened(files)[0], FEEDS, classifier=False)
    wrong = Sensitivity(model, FEEDS, classifier=False)
    original = Original(files.float_model)
    assert wrong.of_model(converted, original) == right.of_model(converted, original)


@pytest.mark.parametrize("activations", ["int4", "none"])
def test_other_activations(write_files, tmp_path, activations):
    files = write_files(tmp_path, group_size=4, activations=activations)
    assert all(value > 0 for value in measured(files, classifier=True).values())


def test_layers_whose_weights_took_scales(make_model, tmp_path):
    """They are put into a float model that took them too; into another they move outputs too far."""
    gains = np.where(np.arange(8) % 4 == 0, 100.0, 1.0).astype(np.float32)
    text = """(float[N,3,8,8] x) => (float[N,6] y) {
        a = Conv(x, w, c) r = Relu(a) b = Conv(r, v) p = GlobalAveragePool(b) y = Flatten(p)
    }"""
    weights = {"w": normal(8, 3, 3, 3), "c": normal(8), "v": normal(6, 8, 3, 3)}
    weights = {"w": weights["w"] * gains[:, None, None, None], "c": weights["c"] * gains, "v": weights["v"]}
    paths = SimpleNamespace(float_model=tmp_path / "float.onnx", converted=tmp_path / "converted.onnx")
    onnx.save(make_model(text, weights), paths.float_model)
    options = {"recipe": "fgq", "group_size": 4, "activations": "int4", "smooth": True}
    onnx.save(convert(paths.float_model, calibration={"x": X}, **options).model, paths.converted)
    found = measured(paths, classifier=False)
    assert len(found) == 2
    assert max(found.values()) < 0.3
    model, converted = read_float_model(paths.float_model), container.load(paths.converted)
    prepare(model)
    pairs = [entry.quantized for entry in pair_layers(model, converted)]
    wrong = Sensitivity(model, FEEDS, classifier=False).of_layers(pairs, converted, silent)
    assert max(wrong.values()) > 1


def test_another_model_is_refused(files, make_model, tmp_path):
    text = "(float[N,3,8,8] x) => (float[N,8,8,8] o) { o = Conv<pads=[1,1,1,1]>(x, w, c) }"
    weights = {
        each.name: numpy_helper.to_array(each) for each in onnx.load(files.float_model).graph.initializer
    }
    other = make_model(text, {name: weights[name] for name in "wc"})
    other.graph.node[0].name = "layer_a"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="layer_a: found the result 'a', wanted 'o'"):
        measured(files._replace(float_model=tmp_path / "other.onnx"), classifier=True)


def test_data_that_the_converted_model_refuses(files, make_model):
    model, _, _ = opened(files)
    sensitivity = Sensitivity(model, [{"x": X[:2]}], classifier=True)
    other = read_float_model(make_model("(float[N,9] x) => (float y) { y = Relu(x) }"))
    with pytest.raises(DataError, match="converted model: cannot run on the data"):
        sensitivity.of_model(other, Original(files.float_model))


class TestDivergence:
    def test_logits_against_scipy(self):
        a, b = normal(6, 9), 3 * normal(9, 6).T
        p, q = (special.softmax(each.astype(np.float64), axis=1) for each in (a, b))
        # Of float32 scores in double precision.
        assert divergence(a, b) == pytest.approx(special.rel_entr(p, q).sum(1).mean(), rel=1e-9)
        assert divergence(a, a) == 0.0
        assert divergence(a + 100, b) == pytest.approx(divergence(a, b), rel=1e-4)  # a + 100 is rounded

    def test_probabilities_are_taken_as_they_are(self):
        p, q = (special.softmax(each, axis=1) for each in (normal(6, 9), normal(9, 6).T))
        assert divergence(p, q) == pytest.approx(special.rel_entr(p, q).sum(1).mean(), abs=1e-6)
        certain = np.eye(3, dtype=np.float32)
        assert divergence(certain, certain) == 0.0
        # A probability of 0 counts as the smallest normal float32.
        assert divergence(certain, certain[::-1]) == pytest.approx(2 / 3 * -np.log(np.finfo(np.float32).tiny))

    def test_one_class(self):
        assert divergence(normal(4, 1), normal(4, 1) + 1) == 0.0

    def test_nan_is_nan(self):
        assert np.isnan(divergence(normal(2, 2), np.full((2, 2), np.nan, np.float32)))


def test_an_output_that_no_layer_moves(make_model):
    model = read_float_model(make_model("(float[N,3] x) => (float y, float z) { y = Relu(x)\nz = Abs(x) }"))
    feeds = [{"x": normal(4, 3)}]
    assert Sensitivity(model, feeds, classifier=True).distance([{"z": normal(4, 3)}]) == 0.0
    error = Sensitivity(model, feeds, classifier=False).distance([{"z": 2 * np.abs(normal(4, 3))}])
    assert error == pytest.approx(1.0, rel=1e-6)
