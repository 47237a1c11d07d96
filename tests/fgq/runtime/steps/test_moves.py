"""Steps that move integers, against onnxruntime and the ONNX reference evaluator."""

from itertools import permutations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from fgq.runtime.steps.moves import ReorderStep, read_move, reshaped
from fgq.runtime.steps.step import Orders

MOVE = """({type}[{shape}] x) => ({type} y) {{
    a = DequantizeLinear(x, s, z)
    b = {move}
    y = QuantizeLinear(b, s, z)
}}"""


def model_of(make_model, move, shape="N,3,4", dtype=np.uint8, **constants):
    text = MOVE.format(type=dtype.__name__, shape=shape, move=move)
    constants = {name: np.asarray(array) for name, array in constants.items()}
    return make_model(text, {"s": np.float32(0.1), "z": dtype(7)} | constants)


def draw(*shape, dtype=np.uint8):
    ends = np.iinfo(dtype)
    return {"x": np.random.default_rng(0).integers(ends.min, ends.max, shape, dtype, endpoint=True)}


MOVES = {
    "Transpose<perm=[2,0,1]>(a)": {},
    "Transpose(a)": {},
    "Reshape(a, c)": {"c": [0, 12]},
    "Reshape(a, c) ": {"c": [-1, 2, 6]},
    "Flatten(a)": {},
    "Flatten<axis=0>(a)": {},
    "Flatten<axis=-1>(a)": {},
    "Unsqueeze(a, c)": {"c": [0, -1]},
    "Squeeze(a, c)": {"c": [-2]},
    "Identity(a)": {},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("move", MOVES)
def test_moves(make_model, check_steps, move, dtype):
    rest = (1, 4) if "Squeeze" in move else (3, 4)
    shape = ",".join(map(str, ("N", *rest)))
    model = model_of(make_model, move, shape, dtype, **MOVES[move])
    kernel = "transpose" if "Transpose" in move else "reshape"
    # int8 is held as the uint8 128 above it, and both ends of the model want it as it is
    ends = ["reorder"] if dtype == np.int8 or "Transpose" in move else []
    feeds = [draw(batch, *rest, dtype=dtype) for batch in (1, 2, 5, 0)]
    if move == "Reshape(a, c) ":
        feeds = feeds[:3]  # -1 of no elements is refused
    check_steps(model, *feeds, kernels=[*(ends if dtype == np.int8 else []), kernel, *ends])


def test_moves_in_a_row(make_model, check_steps):
    """Transposes that undo each other leave the integers where they are."""
    text = """(uint8[N,2,3,4] x) => (uint8 y, uint8 z) {
        a0 = DequantizeLinear(x, s, zero)
        b = Transpose<perm=[0,2,3,1]>(a0)
        b8 = QuantizeLinear(b, s, zero)
        a1 = DequantizeLinear(b8, s, zero)
        c = Transpose<perm=[0,3,1,2]>(a1)
        y = QuantizeLinear(c, s, zero)
        a2 = DequantizeLinear(b8, s, zero)
        d = Reshape(a2, shape)
        z = QuantizeLinear(d, s, zero)
    }"""
    weights = {"s": np.float32(0.1), "zero": np.uint8(7), "shape": np.array([0, -1])}
    feeds = [draw(batch, 2, 3, 4) for batch in (1, 3)]
    kernels = ["transpose", "transpose", "reorder", "reshape"]
    session = check_steps(make_model(text, weights), *feeds, kernels=kernels)
    x = feeds[0]["x"]
    np.testing.assert_array_equal(session.run(["y"], {"x": x})[0], x)


NODES = [
    ("Identity", (2, 3), None, {}),
    ("Flatten", (2, 3, 4), None, {"axis": 2}),
    ("Flatten", (2, 3, 4), None, {"axis": 3}),
    ("Flatten", (), None, {"axis": 0}),
    ("Reshape", (2, 3, 4), [4, 0, -1], {}),
    ("Reshape", (2, 3, 4), [-1], {}),
    ("Reshape", (0, 3), [0, 1, 3], {}),
    ("Reshape", (0, 3), [3, 0], {"allowzero": 1}),
    ("Reshape", (1,), [], {}),
    ("Squeeze", (1, 3, 1), None, {}),
    ("Squeeze", (1, 3, 1), [0], {}),
    ("Squeeze", (1, 3, 1), [-1, 0], {}),
    ("Squeeze", (1, 1), [0, 1], {}),
    ("Unsqueeze", (2, 3), [0], {}),
    ("Unsqueeze", (2, 3), [3, 1], {}),
    ("Unsqueeze", (2, 3), [-1, -4], {}),
    ("Unsqueeze", (), [0], {}),
]


@pytest.mark.parametrize(("op_type", "shape", "sizes", "attributes"), NODES, ids=map(str, range(len(NODES))))
def test_shapes_are_those_of_the_standard(op_type, shape, sizes, attributes):
    x = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    constants = [] if sizes is None else [helper.make_tensor("c", 7, [len(sizes)], sizes)]
    names = ["x", "c"][: 1 + len(constants)]
    node = helper.make_node(op_type, names, ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (wanted,) = ReferenceEvaluator(model).run(None, {"x": x})
    (ours,) = ir.from_proto(model).graph
    assert reshaped(ours, shape) == wanted.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float32])
@pytest.mark.parametrize("order", [None, (0, 2, 1), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("wanted", [None, (0, 2, 1), (2, 0, 1)])
def test_orders_of_axes(compute, order, wanted, dtype):
    value = np.random.default_rng(0).integers(0, 100, (2, 3, 4)).astype(dtype)
    lies, lie = (value if axes is None else value.transpose(axes) for axes in (order, wanted))
    step = ReorderStep(ir.Value(name="v"), order, wanted, dtype, flipped=False)
    assert step.orders([order]) == Orders((order,), wanted)
    given = np.ascontiguousarray(lies)
    np.testing.assert_array_equal(compute(step, given), lie)
    view = step.alias([given])
    assert (view is not None) == (order == wanted)
    if view is not None:
        assert np.shares_memory(view, given)


@pytest.mark.parametrize("wanted", list(permutations(range(4))), ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_images_in_every_order_of_axes(compute, wanted, dtype):
    value = np.random.default_rng(0).integers(0, 100, (2, 3, 18, 19)).astype(dtype)
    step = ReorderStep(ir.Value(name="v"), None, wanted, dtype, flipped=False)
    for threads in (1, 3):
        np.testing.assert_array_equal(compute(step, value, threads=threads), value.transpose(wanted))


@pytest.mark.parametrize(("found", "made"), [(np.int8, np.uint8), (np.uint8, np.int8)])
def test_int8_is_the_uint8_above_it(compute, found, made):
    every = np.arange(256, dtype=np.uint8).view(found).reshape(16, 16)
    step = ReorderStep(ir.Value(name="v"), None, (1, 0), made, flipped=True)
    wanted = (every.astype(int) + (128 if found == np.int8 else -128)).T
    np.testing.assert_array_equal(compute(step, every), wanted)
    assert ReorderStep(ir.Value(name="v"), None, None, made, flipped=True).alias([every]) is None


@pytest.mark.parametrize(
    "text",
    [
        MOVE.format(type="uint8", shape="2,3", move="Transpose(a)").replace("s, z)\n}", "t, z)\n}"),
        MOVE.format(type="uint8", shape="2,3", move="Transpose(a)\n c = Relu(b)").replace("(b, s", "(c, s"),
        MOVE.format(type="uint8", shape="2,3", move="Transpose(a)\n c = Neg(b)").replace("(b, s", "(c, s"),
        """(uint8[2,3] x, int64[1] n) => (uint8 y) {
            a = DequantizeLinear(x, s, z)
            b = Reshape(a, n)
            y = QuantizeLinear(b, s, z)
        }""",
        """(float[2,3] x) => (float y) { y = Transpose(x) }""",
    ],
    ids=["another scale", "bounds", "an operator behind", "sizes that are computed", "real values"],
)
def test_what_is_not_a_move_of_integers(make_model, text):
    model = make_model(text, {"s": np.float32(0.1), "t": np.float32(0.2), "z": np.uint8(7)})
    assert not any(read_move(node) for node in ir.from_proto(model).graph)
