import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from fgq.errors import DataError
from fgq.runtime.feeds import NodeArg, check_feeds

SPECS = [
    NodeArg(name="x", shape=["N", 3], type="tensor(float)"),
    NodeArg(name="z", shape=["N"], type="tensor(int64)"),
]
X, Z = np.ones((2, 3), np.float32), np.arange(2)
TENSORS = [code for code in TensorProto.DataType.values() if code != TensorProto.UNDEFINED]


def spec(kind, shape=()):
    return [NodeArg(name="x", shape=list(shape), type=kind)]


def identity(*types):
    """A model that gives back what it gets, in onnxruntime."""
    names = [f"i{index}" for index in range(len(types))]
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"o{name}"]) for name in names],
        "g",
        [onnx.ValueInfoProto(name=name, type=kind) for name, kind in zip(names, types, strict=True)],
        [onnx.ValueInfoProto(name=f"o{name}", type=kind) for name, kind in zip(names, types, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def test_fitting_arrays_pass_uncopied():
    checked = check_feeds(SPECS, {"z": Z, "x": X})
    assert list(checked) == ["x", "z"]
    assert checked["x"] is X
    assert checked["z"] is Z


@pytest.mark.parametrize("code", TENSORS, ids=TensorProto.DataType.Name)
def test_type_names_are_those_of_the_operator_schemas(code):
    kind = helper.make_tensor_type_proto(code, [2])
    value = ir.serde.deserialize_value_info_proto(onnx.ValueInfoProto(name="x", type=kind), None)
    known = {
        name
        for schema in onnx.defs.get_all_schemas()
        for constraint in schema.type_constraints
        for name in constraint.allowed_type_strs
    }
    found = NodeArg.of(value)
    assert found.type in known
    array = np.zeros(2, helper.tensor_dtype_to_np_dtype(code))
    assert check_feeds([found], {"x": array})["x"] is array


def test_described_as_onnxruntime_describes_them():
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", None, 3])
    codes = [
        *("FLOAT", "UINT8", "DOUBLE", "FLOAT16", "STRING", "BOOL", "INT64", "BFLOAT16"),
        *("FLOAT8E4M3FN", "FLOAT8E5M2FNUZ"),
    ]
    types = [
        *(helper.make_tensor_type_proto(TensorProto.DataType.Value(code), [1, "N"]) for code in codes),
        tensor,
        helper.make_tensor_type_proto(TensorProto.FLOAT, []),
        helper.make_tensor_type_proto(TensorProto.FLOAT, None),
        helper.make_tensor_type_proto(TensorProto.FLOAT, [-1, 0]),
        helper.make_sequence_type_proto(tensor),
        helper.make_optional_type_proto(tensor),
        helper.make_optional_type_proto(helper.make_sequence_type_proto(tensor)),
    ]
    model = identity(*types)
    ours = [NodeArg.of(value) for value in ir.serde.deserialize_model(model).graph.inputs]
    theirs = session(model).get_inputs()
    assert [(a.name, a.shape, a.type) for a in ours] == [(a.name, a.shape, a.type) for a in theirs]


def test_unknown_types_say_so():
    assert NodeArg.of(ir.Value(name="x")).type == "tensor(undefined)"


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"^inputs: required inputs \(x, z\) are missing from the feed: found none, wanted x, z$"),
        ({"x": X}, r"required inputs \(z\) are missing from the feed: found x, wanted x, z"),
        ({"x": X, "z": Z, "w": Z}, "invalid input name 'w': found w, x, z, wanted x, z"),
        ({"x": X, "w": Z}, "invalid input name 'w': found w, x, wanted x, z"),
        ([X, Z], "^inputs: found list, wanted a dict of arrays by input name$"),
        (
            {"x": X.astype(np.float64), "z": Z},
            r"^input 'x': unexpected data type: found tensor\(double\), wanted tensor\(float\)$",
        ),
        ({"x": X, "z": Z.astype(np.int32)}, r"'z': .*found tensor\(int32\), wanted tensor\(int64\)"),
        ({"x": np.float64(1), "z": Z}, r"found tensor\(double\), wanted tensor\(float\)"),
        ({"x": X.astype(object), "z": Z}, r"found tensor\(string\), wanted tensor\(float\)"),
        ({"x": X[0], "z": Z}, r"^input 'x': invalid rank 1: found \[3\], wanted \[N, 3\]$"),
        (
            {"x": X[:, :2], "z": Z},
            r"^input 'x': invalid dimensions: found \[2, 2\], wanted \[N, 3\] \(index 1 is 2, not 3\)$",
        ),
        ({"x": None, "z": Z}, r"found NoneType, wanted tensor\(float\)"),
        ({"x": b"abc", "z": Z}, r"found bytes, wanted tensor\(float\)"),
        ({"x": "abc", "z": Z}, r"found Python values of type <U3, wanted tensor\(float\)"),
        ({"x": [[1, 2, 3], [4]], "z": Z}, r"^input 'x': found values that are no array"),
        ({"x": X, "z": [1.5, 2]}, "found Python values of type float64, wanted"),
    ],
)
def test_says_what_does_not_fit(feeds, message):
    with pytest.raises(DataError, match=message):
        check_feeds(SPECS, feeds)


@pytest.mark.parametrize("value", [300, -1])
def test_refuses_numbers_that_the_dtype_cannot_hold(value):
    with pytest.raises(DataError, match=r"no array .*wanted tensor\(uint8\)"):
        check_feeds(spec("tensor(uint8)", [1]), {"x": [value]})


def test_a_dimension_without_a_name_may_vary():
    free = spec("tensor(float)", [None, 3])
    assert check_feeds(free, {"x": X})["x"] is X
    with pytest.raises(DataError, match=r"wanted \[\?, 3\]"):
        check_feeds(free, {"x": X.T})


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 0, 3), np.float32),
        np.asfortranarray(X),
        X[::2, ::-1],
        X.astype(">f4"),
        X.view(np.matrix),
        [[0.5, 1.0, 2.0]],
        [[1, 2, 3]],
        ((True,),),
        [],
        1.5,
        np.float32(2),
        onnxruntime.OrtValue.ortvalue_from_numpy(X),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_counts_as_an_array(value):
    """A declared shape of [] takes any shape, as in onnxruntime."""
    array = check_feeds(spec("tensor(float)"), {"x": value})["x"]
    assert type(array) is np.ndarray
    assert array.dtype == np.float32
    assert array.dtype.isnative
    expected = value.numpy() if isinstance(value, onnxruntime.OrtValue) else value
    np.testing.assert_array_equal(array, np.asarray(expected, np.float32))


def test_tensors_of_torch_count_as_arrays():
    torch = pytest.importorskip("torch")
    np.testing.assert_array_equal(
        check_feeds(spec("tensor(float)", [2]), {"x": torch.ones(2)})["x"], np.ones(2, np.float32)
    )


@pytest.mark.parametrize(
    "value",
    [["a", "bc"], np.array(["a", "bc"]), np.array(["a", "bc"], object), np.array(["a", "bc"], "T")],
    ids=["list", "fixed", "object", "StringDType"],
)
def test_strings_become_objects(value):
    array = check_feeds(spec("tensor(string)", [2]), {"x": value})["x"]
    assert array.dtype == object
    assert array.tolist() == ["a", "bc"]
    with pytest.raises(DataError, match=r"found tensor\(float\), wanted tensor\(string\)"):
        check_feeds(spec("tensor(string)", [2]), {"x": X[0, :2]})


def test_names_of_dimensions_may_disagree_as_in_onnxruntime():
    feeds = {"x": X, "z": np.arange(5)}
    assert check_feeds(SPECS, feeds)["z"] is feeds["z"]
    model = identity(
        helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3]),
        helper.make_tensor_type_proto(TensorProto.INT64, ["N"]),
    )
    assert session(model).run(None, {"i0": X, "i1": feeds["z"]})[1].shape == (5,)


def test_sequences_pass_and_optional_inputs_may_be_left_out():
    specs = [*spec("seq(tensor(float))"), NodeArg(name="o", shape=[], type="optional(tensor(float))")]
    sequence = [X, X]
    assert check_feeds(specs, {"x": sequence}) == {"x": sequence}
    assert check_feeds(specs, {"x": sequence, "o": None}) == {"x": sequence, "o": None}
    with pytest.raises(DataError, match=r"required inputs \(x\)"):
        check_feeds(specs, {"o": None})


def test_no_inputs():
    assert check_feeds([], {}) == {}
