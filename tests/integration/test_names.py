"""Names that a conversion makes never meet the model's own, whatever these are."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fgq
from fgq.config import ExportForm
from fgq.converters.export import export

RNG = np.random.default_rng(0)
CORE = """
    c1 = Conv <kernel_shape=[1,1]> (x, w0)
    n1 = BatchNormalization (c1, gain, shift, mean, variance)
    r1 = Relu (n1)
    c2 = Conv <kernel_shape=[1,1]> (r1, w0)
    sum = Add (c2, r1)
    p = ReduceMean <axes=[2,3], keepdims=0> (sum)
    g = Gemm <alpha=0.5, beta=2.0> (p, w1, full)
    t = Relu (g)
    m = MatMul (t, w2)
    u = Add (m, b)
    v = MatMul (t, w3)
    y = Add (u, v)
"""
WEIGHTS = {
    "w0": RNG.standard_normal((16, 16, 1, 1)) / 4,
    "gain": RNG.uniform(0.5, 1, 16),
    "shift": RNG.standard_normal(16),
    "mean": RNG.standard_normal(16),
    "variance": RNG.uniform(0.5, 1, 16),
    "w1": RNG.standard_normal((16, 16)) / 4,
    "full": RNG.standard_normal((1, 16)),
    "w2": RNG.standard_normal((16, 16)) / 4,
    "w3": RNG.standard_normal((16, 16)) / 4,
    "b": RNG.standard_normal(16),
}
FEEDS = {"x": RNG.standard_normal((8, 16, 3, 3)).astype(np.float32), "flag": np.array(True)}


def with_bystanders(make_model, names=()):
    """Return a model in which tensors that no layer reads, of all kinds, have the given names in turn.

    They are results of nodes of the main graph (a0, ..), of a subgraph (i0, ..), and constants (k0, ..).
    """
    count = max(1, -(-len(names) // 3))
    numbers = range(count)
    main = "\n".join(f"a{i} = Tanh ({f'a{i - 1}' if i else 'x'})" for i in numbers)
    inner = "\n".join(f"i{i} = Tanh ({f'i{i - 1}' if i else 'x'})" for i in numbers)
    scaled = "\n".join(f"z{i} = Mul (a{i}, k{i})" for i in numbers)
    text = f"""(float[N,16,3,3] x, bool flag) => (float y, float z, float w) {{
        {CORE}
        {main}
        {scaled}
        z = Sum ({", ".join(f"z{i}" for i in numbers)})
        w = If (flag) <
            then_branch = yes () => (float o) {{ {inner} o = Neg (i{count - 1}) }},
            else_branch = no () => (float e) {{ e = Neg (x) }}
        >
    }}"""
    constants = {f"k{i}": np.full((), 0.5 + i) for i in numbers}
    model = make_model(
        text, {name: array.astype(np.float32) for name, array in (WEIGHTS | constants).items()}
    )
    bystanders = [f"{kind}{i}" for i in numbers for kind in "aik"]
    rename(model.graph, dict(zip(bystanders, names, strict=False)))
    return model


def rename(graph, new):
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [new.get(name, name) for name in values]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename(attribute.g, new)


def names_of(model):
    computed = {name for node in model.graph.node for name in node.output}
    return computed | {tensor.name for tensor in model.graph.initializer}


def convert(model, mode, form="packed"):
    converted, _ = fgq.convert(
        model,
        group_size=4,
        activations=mode,
        calibration=[FEEDS] if mode in ("int8", "int4") else None,
        recipe="fgq",
        form=form,
        first_last_int8=False,
        x86_without_vnni=True,
    )
    onnx.checker.check_model(converted)
    return converted


@pytest.mark.parametrize(
    ("shift", "mode", "form"),
    [(0, "int8", "packed"), (1, "int8", "inlined"), (1, "int4", "packed")]
    + [(i, mode, "packed") for i, mode in enumerate(("int8-dynamic", "int8-dynamic-token", "none"))],
)
def test_the_model_has_the_names_that_a_conversion_makes(make_model, run, shift, mode, form):
    plain = with_bystanders(make_model)
    converted = convert(plain, mode, form)
    (expected,) = run(converted, FEEDS, ["y"])
    taken = sorted(names_of(converted) - names_of(plain))
    assert len(taken) > 10
    model = with_bystanders(make_model, taken[shift:] + taken[:shift])
    found = convert(model, mode, form)
    ours, *others = run(found, FEEDS)
    np.testing.assert_array_equal(ours, expected)
    for a, b in zip(others, run(model, FEEDS)[1:], strict=True):
        np.testing.assert_allclose(a, b, 1e-6)


@pytest.mark.parametrize("form", ["int8", "float"])
def test_export_of_a_model_that_has_its_names(make_model, run, form):
    def exported(model):
        changed = ir.from_proto(convert(model, "int8-dynamic"))
        export(changed, ExportForm(form))
        proto = ir.to_proto(changed)
        onnx.checker.check_model(proto)
        return proto

    plain = with_bystanders(make_model)
    first = exported(plain)
    (expected,) = run(first, FEEDS, ["y"])
    model = with_bystanders(make_model, sorted(names_of(first) - names_of(plain)))
    np.testing.assert_array_equal(run(exported(model), FEEDS, ["y"])[0], expected)
