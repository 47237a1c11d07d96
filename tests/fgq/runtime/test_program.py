"""A network run step by step and as a program: shapes that come and go, memory, threads, failures."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest

from fgq import Session, convert
from fgq.errors import DataError
from fgq.runtime.program import Program, Programs, Times, trace

TEXT = """(float[N,3,H,8] x) => (float y, uint8 q) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    b = Relu(a)
    c = Conv<pads=[1,1,1,1]>(b, v)
    d = Add(c, b)
    e = MaxPool<kernel_shape=[2,2], strides=[2,2]>(d)
    f = Conv(e, u)
    g = Selu(f)
    y = GlobalAveragePool(g)
    q = QuantizeLinear(y, s, z)
}"""


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


WEIGHTS = {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3), "u": normal(5, 8, 1, 1)}
WEIGHTS |= {"s": np.float32(0.02), "z": np.uint8(100)}


def feeds_of(batch, height=8, seed=0):
    return {"x": np.random.default_rng(seed).standard_normal((batch, 3, height, 8), np.float32)}


@pytest.fixture(scope="module")
def model(make_model):
    return convert(make_model(TEXT, WEIGHTS), calibration=feeds_of(4), group_size=4).model


@pytest.fixture
def network(model):
    return Session(model.SerializeToString(), threads=1)._network


def shapes_of(feeds):
    return tuple(array.shape for array in feeds.values())


def same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_step_by_step_and_as_a_program(model, network, run):
    """The second run of some shapes uses what the first one learnt; both are onnxruntime's integers."""
    for feeds in (feeds_of(2), feeds_of(1, 2), feeds_of(3, 11)):
        outputs, layout = trace(network, feeds, 1)
        program = Program(network, layout, 1)
        other = {"x": -feeds["x"]}
        same(program.run(other, ["q"]), run(model, other, ["q"]))
        same(program.run(feeds, ["q", "y"]), [outputs["q"], outputs["y"]])
        same([outputs["q"]], run(model, feeds, ["q"]))


def test_memory_is_used_again_and_again(network):
    feeds = feeds_of(4, 40)
    _, layout = trace(network, feeds, 1)
    program = Program(network, layout, 1)
    own = {root for slot, root in enumerate(layout.roots) if slot == root}
    sizes = [dtype.itemsize * int(np.prod(shape)) for shape, dtype in layout.forms]
    held = program.memory_bytes - program._scratch.nbytes
    assert max(sizes) <= held < sum(sizes[slot] for slot in own)


def test_those_shapes_are_kept_that_were_used_last(network):
    programs = Programs(network, 1)
    every = [feeds_of(1, height) for height in range(2, 3 + Programs.KEPT)]
    for feeds in every[:-1]:
        programs.run(feeds, ["q"])
    programs.run(every[0], ["q"])  # so the second is what was used longest ago
    assert programs.memory_bytes > 0
    programs.run(every[-1], ["q"])
    known = list(programs._known)
    assert len(known) == Programs.KEPT
    assert shapes_of(every[1]) not in known
    assert known[-2:] == [shapes_of(every[0]), shapes_of(every[-1])]
    # what was forgotten is learnt again
    assert programs.run(every[1], ["q"])["q"].shape == programs.run(every[1], ["q"])["q"].shape


def test_more_shapes_than_are_kept_turn_by_turn(model, run):
    session = Session(model.SerializeToString())
    every = [feeds_of(batch, height) for batch in (1, 2, 3) for height in (2, 4, 5, 8)]
    expected = [run(model, feeds, ["q"]) for feeds in every]
    for _ in range(2):
        for feeds, wanted in zip(every, expected, strict=True):
            same(session.run(["q"], feeds), wanted)


def test_threads_take_a_program_each(network):
    """All have the same shapes, and none sees the activations of another."""
    programs, gate = Programs(network, 1), threading.Barrier(4)
    every = [feeds_of(2, seed=seed) for seed in range(4)]
    alone = [programs.run(feeds, ["y"])["y"] for feeds in every]

    def work(feeds):
        gate.wait(timeout=60)
        return [programs.run(feeds, ["y"])["y"] for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, every))
    for found, expected in zip(together, alone, strict=True):
        same(found, [expected] * 20)
    (known,) = programs._known.values()
    assert 1 <= len(known.idle) <= 4


def test_shapes_forgotten_while_they_run(network):
    """A program that comes back after its shapes were forgotten is dropped."""
    programs, feeds = Programs(network, 1), feeds_of(1)
    programs.run(feeds, [])
    program = programs._take(shapes_of(feeds))
    programs._known.clear()
    programs._give_back(shapes_of(feeds), program)
    assert not programs._known


def test_no_elements(make_model, run):
    """Nothing is planned for arrays that have no place; they are computed all the same."""
    text = """(float[N,8] x) => (float y) {
        a = MatMul(x, w)
        b = Relu(a)
        y = MatMul(b, w)
    }"""
    model = make_model(text, {"w": normal(8, 8)})
    result = convert(model, calibration={"x": normal(9, 8)}, group_size=4).model
    session = Session(result.SerializeToString())
    for count in (0, 3, 0, 1, 1, 0):
        x = normal(9, 8)[:count]
        (found,) = session.run(None, {"x": x})
        assert found.shape == (count, 8)
        same([found], run(result, {"x": x}))
    layouts = {shapes[0]: known.layout for shapes, known in session._programs._known.items()}
    assert layouts[0, 8] is None
    assert layouts[1, 8] is not None


def test_results_share_no_memory_with_inputs(make_model):
    text = """(uint8[N,2,3] x) => (uint8 y) {
        a = DequantizeLinear(x, s, z)
        b = Flatten(a)
        y = QuantizeLinear(b, s, z)
    }"""
    session = Session(make_model(text, {"s": WEIGHTS["s"], "z": WEIGHTS["z"]}).SerializeToString())
    x = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for _ in range(3):
        (y,) = session.run(None, {"x": x})
        assert not np.may_share_memory(x, y)
        y[...] = 0
    np.testing.assert_array_equal(x.reshape(-1), np.arange(12))


def test_inputs_that_may_not_be_written(model):
    """Read-only and reversed inputs, in both ways of running."""
    session = Session(model.SerializeToString())
    feeds = feeds_of(3)
    expected = session.run(None, feeds)
    held = feeds["x"].copy()
    held.flags.writeable = False
    turned = np.ascontiguousarray(feeds["x"][::-1])[::-1]
    for x in (held, turned):
        for fresh in (session, Session(model.SerializeToString())):
            same(fresh.run(None, {"x": x}), expected)


@pytest.mark.parametrize("planned", [False, True])
def test_times(network, planned):
    programs, feeds = Programs(network, 1), feeds_of(2)
    if planned:
        programs.run(feeds, [])
    times = programs.timed(feeds)
    outputs, _ = trace(network, feeds, 1, traced := Times())
    assert len(times.seconds) == len(traced.seconds) == len(network.instructions)
    assert min(times.seconds) >= 0
    assert times.output_bytes == traced.output_bytes
    assert sum(times.output_bytes) >= outputs["y"].nbytes


@pytest.fixture
def unsteady(make_model):
    """A network whose sizes depend on the data, and may not fit them."""
    text = """(float[N,8] x, int64[R] sizes) => (float y) {
        a = MatMul(x, w)
        b = Relu(a)
        y = Reshape(b, sizes)
    }"""
    model = make_model(text, {"w": normal(8, 8)})
    feeds = {"x": normal(6, 8), "sizes": np.array([-1])}
    return Session(convert(model, calibration=[feeds], group_size=4).model.SerializeToString())


def test_a_program_that_does_not_fit_gives_way_to_steps(unsteady):
    feeds = {"x": normal(6, 8), "sizes": np.array([2, 24])}
    (first,) = unsteady.run(None, feeds)
    for sizes in ([2, 24], [4, 12], [24, 2], [2, 24]):
        (found,) = unsteady.run(None, feeds | {"sizes": np.array(sizes)})
        np.testing.assert_array_equal(found, first.reshape(sizes))


def test_bad_sizes_are_refused_and_harm_nothing(unsteady):
    feeds = {"x": normal(6, 8), "sizes": np.array([2, 24])}
    (first,) = unsteady.run(None, feeds)
    for _ in range(2):
        with pytest.raises(DataError):
            unsteady.run(None, feeds | {"sizes": np.array([5, 5])})
        np.testing.assert_array_equal(unsteady.run(None, feeds)[0], first)


OPERATORS = {
    "a": "Mul({x}, {x})",
    "b": "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({a})",
    "c": "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({b})",
    "d": "Concat<axis=1>({b}, {c})",
    "e": "HardSwish({d})",
    "f": "Add({d}, {e})",
    "g": "GlobalAveragePool({f})",
    "y": "Flatten({g})",
}
"""Each between quantizers of its own."""

KERNELS = {
    "quantize", "quantized_multiply", "max_pool", "average_pool", "concat", "lookup", "quantized_add",
    "global_average_pool", "reshape", "reorder",
}  # fmt: skip


def operators_between_quantizers():
    lines = ["x8 = QuantizeLinear(x, s, z)"]
    for result, call in OPERATORS.items():
        sources = [name for name in ("x", *OPERATORS) if f"{{{name}}}" in call]
        lines += [f"{result}_{name} = DequantizeLinear({name}8, s, z)" for name in sources]
        call = call.format(**{name: f"{result}_{name}" for name in sources})
        lines += [f"{result}_real = {call}", f"{result}8 = QuantizeLinear({result}_real, s, z)"]
    body = "\n".join(lines).replace("y8 =", "y =").replace("f8 =", "pixels =").replace("(f8,", "(pixels,")
    return f"(float[N,8,6,H] x) => (uint8 y, uint8 pixels) {{ {body} }}"


def test_a_machine_with_fewer_instructions(make_model, check_steps, lesser_machine):
    """The operators between layers on each instruction set that this machine has beside its own."""
    model = make_model(operators_between_quantizers(), {"s": np.float32(0.02), "z": np.uint8(100)})
    rng = np.random.default_rng(4)
    feeds = [
        {"x": rng.standard_normal((batch, 8, 6, h), np.float32)} for batch, h in ((1, 1), (3, 7), (2, 70))
    ]
    kernels = [step.kernel for step in Session(model.SerializeToString()).steps()]
    assert set(kernels) == KERNELS
    check_steps(model, *feeds, kernels=kernels, threads=2)


def test_the_inputs_of_a_network_are_named(network, model):
    assert [value.name for value in ir.from_proto(model).graph.inputs] == list(network.inputs)
