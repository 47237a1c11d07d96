"""Sensitivities against running the network with one layer changed, and what is timed."""

import numpy as np
import onnx_ir as ir
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from fgq.config import ConversionConfig
from fgq.converters.float_layers import find_layers
from fgq.converters.passes import prepare
from fgq.converters.select import Choice, choose_schemes
from fgq.format.outputs import classifier_output
from fgq.plan.latency import seconds_of
from fgq.plan.options import options_of
from fgq.plan.sensitivity import sensitivities
from fgq.quantization.scheme import Codes
from fgq.quantization.weights import quantize_weight

RNG = np.random.default_rng(3)
WEIGHTS = {
    "v": RNG.standard_normal((32, 48)).astype(np.float32),
    "w": RNG.standard_normal((48, 5)).astype(np.float32),
}
FEEDS = [{"x": RNG.standard_normal((20, 32)).astype(np.float32)} for _ in range(5)]  # 80 samples, 64 wanted
NORMALIZED = "h = MatMul(x, v) r = Relu(h) y = MatMul(r, w)"
BROKEN = "(float[N,32] x) => (float[N,5] y) {{ {} }}"


def laid_out(model, **options):
    config = ConversionConfig(**options)
    model = ir.from_proto(model)
    prepare(model)
    choices = [
        entry for entry in choose_schemes(model, find_layers(model), config) if isinstance(entry, Choice)
    ]
    return model, choices, [options_of(choice, config) for choice in choices]


@pytest.mark.parametrize("ending", ["", "Softmax", "Sigmoid"])
def test_one_layer_at_a_time(make_model, run, ending):
    text = NORMALIZED if not ending else NORMALIZED.replace("y =", "l =") + f" y = {ending}(l)"
    proto = make_model(BROKEN.format(text), WEIGHTS)
    model, choices, options = laid_out(proto, activations="none", group_size=8, first_last_int8=False)
    scores = classifier_output(model)
    assert (scores is None) == (ending == "Sigmoid")
    found = sensitivities(model, choices, options, FEEDS, scores, lambda done, total: None)
    x = np.concatenate([feed["x"] for feed in FEEDS[:4]])
    exact = run(proto, {"x": x})[0].astype(float)
    candidates = [codes for codes in Codes if codes is not Codes.DUAL]  # INT8 holds as much in as many bits
    for choice, schemes, costs, name in zip(choices, options, found, ("v", "w"), strict=True):
        assert [None if scheme is None else scheme.codes for scheme in schemes] == [*candidates, None]
        assert costs[-1] == 0
        for scheme, cost in zip(schemes[:-1], costs, strict=False):
            tensor = quantize_weight(WEIGHTS[name], scheme, group_axis=0, channel_axis=1)
            changed = make_model(BROKEN.format(text), WEIGHTS | {name: tensor.dequantize()})
            moved = run(changed, {"x": x})[0].astype(float)
            if ending == "Sigmoid":
                wanted = np.sum((moved - exact) ** 2) / np.sum(exact**2)
            elif ending == "Softmax":
                # Probabilities that float32 cannot hold count as its smallest normal number.
                wanted = entropy(exact, np.maximum(moved, np.finfo(np.float32).tiny), axis=1).mean()
            else:
                wanted = entropy(softmax(exact, axis=1), softmax(moved, axis=1), axis=1).mean()
            # float32 outputs, whose small divergences are differences of numbers near each other
            assert cost == pytest.approx(wanted, rel=1e-3, abs=1e-6), (choice.layer.name, scheme)


def test_inputs_are_quantized_too(make_model):
    proto = make_model(BROKEN.format(NORMALIZED), WEIGHTS)
    found = {}
    for activations in ("none", "int8", "int4"):
        model, choices, options = laid_out(proto, activations=activations, first_last_int8=False)
        found[activations] = sensitivities(model, choices, options, FEEDS, "y", lambda done, total: None)
    int8 = 3
    for layer in range(2):
        none, eight, four = (found[name][layer][int8] for name in ("none", "int8", "int4"))
        assert none < eight < four
        assert found["int4"][layer][-1] == 0  # a float layer reads float values


def test_a_layer_whose_result_other_nodes_read_too(make_model):
    text = (
        "(float[N,32] x) => (float[N,48] y, float[N,48] h) { h = MatMul(x, v) s = Sigmoid(h) y = Mul(h, s) }"
    )
    model, choices, options = laid_out(make_model(text, WEIGHTS), activations="none")
    costs = sensitivities(model, choices, options, FEEDS, None, lambda done, total: None)[0]
    assert (np.diff(costs) < 0).all()


LAYERS = {
    "matmul": ("(float[1,7,32] x) => (float y) { y = MatMul(x, w) }", (32, 48), (1, 7, 32)),
    "constant on the left": ("(float[1,32,7] x) => (float y) { y = MatMul(w, x) }", (48, 32), (1, 32, 7)),
    "batch of matrices": ("(float[3,7,32] x) => (float y) { y = MatMul(x, w) }", (3, 32, 48), (3, 7, 32)),
    "gemm": ("(float[1,32] x) => (float y) { y = Gemm<transB = 1>(x, w) }", (48, 32), (1, 32)),
    "conv": (
        "(float[1,32,6,6] x) => (float y) { y = Conv<pads = [1,1,1,1]>(x, w) }",
        (8, 32, 3, 3),
        (1, 32, 6, 6),
    ),
    "conv of groups": (
        '(float[1,32,6,6] x) => (float y) { y = Conv<group = 4, auto_pad = "SAME_UPPER">(x, w) }',
        (8, 8, 3, 3),
        (1, 32, 6, 6),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_can_be_timed(make_model, kind):
    text, weight, shape = LAYERS[kind]
    proto = make_model(text, {"w": RNG.standard_normal(weight).astype(np.float32)})
    model, choices, options = laid_out(proto, first_last_int8=False)
    seconds = seconds_of(model, choices, options, {"x": RNG.standard_normal(shape).astype(np.float32)})
    assert len(seconds) == 1
    assert seconds[0].shape == (5,)
    assert (seconds[0] > 0).all()
