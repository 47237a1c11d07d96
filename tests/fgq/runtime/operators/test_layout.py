import numpy as np
import pytest
import torch

from fgq.errors import DataError, ModelError
from fgq.runtime import operators

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
CODES = RNG.integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)


def ints(*values):
    return np.array(values, np.int64)


def run(op_type, *inputs, opset=21, outputs=1, **attributes):
    results = operators.find("", op_type)(inputs, attributes, opset, outputs)
    return results[0] if outputs == 1 else results


@pytest.mark.parametrize("x", [X, CODES], ids=["float", "uint8"])
@pytest.mark.parametrize(
    ("op_type", "others", "attributes"),
    [
        ("Transpose", [], {}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
        ("Reshape", [ints(3, -1)], {}),
        ("Reshape", [ints(0, 0, -1)], {}),
        ("Reshape", [ints(-1, 0, 20)], {}),
        ("Reshape", [ints(120)], {"allowzero": 1}),
        ("Flatten", [], {}),
        ("Flatten", [], {"axis": 0}),
        ("Flatten", [], {"axis": 4}),
        ("Flatten", [], {"axis": -1}),
        ("Unsqueeze", [ints(0, -1)], {}),
        ("Unsqueeze", [ints(3, 1)], {}),
        ("Gather", [ints(1, -1, 0)], {"axis": 2}),
        ("Gather", [np.array(1, np.int32)], {"axis": -1}),
        ("Gather", [np.array([[0, 1], [1, 1]], np.int64)], {}),
        ("Slice", [ints(1), ints(100)], {}),
        ("Slice", [ints(-1, 3), ints(-100, 1), ints(-1, 2), ints(-2, -1)], {}),
        ("Slice", [ints(-100, 0), ints(2**62, -1), ints(1, 3)], {}),
        ("Slice", [ints(3), ints(3), ints(2)], {}),
        ("Slice", [np.array([1], np.int32), np.array([-1], np.int32), np.array([3], np.int32)], {}),
        ("Expand", [ints(2, 1, 1, 1, 1)], {}),
        ("Expand", [ints(7, 2, 3, 4, 5)], {}),
        ("Shape", [], {}),
        ("Shape", [], {"start": 1, "end": -1}),
        ("Shape", [], {"start": -100, "end": 100}),
        ("Shape", [], {"start": 3, "end": 1}),
        ("Identity", [], {}),
        ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {}),
        ("Pad", [ints(0, 0, 1, 2, 0, 0, 2, 0)], {"mode": "reflect"}),
        ("Pad", [ints(0, 0, 1, 2, 0, 0, 7, 0)], {"mode": "edge"}),
        ("Pad", [ints(0, 0, 1, 2, 0, 0, 3, 0)], {"mode": "wrap"}),
        ("Pad", [ints(0, 0, -1, 2, 0, 0, 3, -2)], {}),
        ("Pad", [ints(0, 0, -1, 2, 0, 0, 3, -2)], {"mode": "edge"}),
        ("Pad", [ints(1, -1, 2, 0), None, ints(-1, 1)], {}),
    ],
)
def test_values_move_as_in_onnxruntime(same, x, op_type, others, attributes):
    same(op_type, [x, *others], **attributes)


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_concat(same, axis):
    same("Concat", [X, X[:, ::-1], X], axis=axis)
    same("Concat", [CODES], axis=axis)


def test_concat_of_empty_parts(same):
    same("Concat", [X, X[:0], X], axis=0)


def test_pad_with_a_value(same):
    amounts = ints(0, 0, 1, 2, 0, 0, 3, 0)
    same("Pad", [X, amounts, np.array(7.5, np.float32)])
    same("Pad", [CODES, amounts, np.array(9, np.uint8)])


def test_older_forms_have_attributes(same):
    same("Slice", [X], opset=9, starts=[1, -3], ends=[2, 100], axes=[0, 3])
    same("Squeeze", [X[:1, :, :1]], opset=11, axes=[0])
    same("Squeeze", [X[:1, :, :1]], opset=11)
    same("Unsqueeze", [X], opset=11, axes=[0, 3])
    same("Pad", [X], opset=10, pads=[0, 0, 1, 2, 0, 0, 3, 0], value=2.0)
    same("Split", [X], opset=11, axis=3, split=[1, 3, 1], outputs=3)


def test_squeeze(same):
    same("Squeeze", [X[:1, :, :1], ints(-2)])
    same("Squeeze", [X[:1, :, :1]])
    with pytest.raises(DataError, match="Squeeze"):
        run("Squeeze", X, ints(0))


def test_split(same):
    same("Split", [X, ints(1, 0, 4)], axis=-1, outputs=3)
    same("Split", [X], axis=3, num_outputs=3, outputs=3)
    same("Split", [X], axis=2, num_outputs=2, outputs=2)
    same("Split", [X], opset=13, axis=2, outputs=4)
    with pytest.raises(ModelError, match="Split: found parts of 4 in all, wanted 5"):
        run("Split", X, ints(1, 3), axis=3, outputs=2)


def test_reshape_without_values(same):
    empty = X[:0]
    same("Reshape", [empty, ints(0, 6)], allowzero=1)
    same("Reshape", [X[:, :0], ints(0, -1)])
    with pytest.raises(DataError, match="Reshape"):  # what remains of nothing could be anything
        run("Reshape", empty, ints(0, -1))
    same("Flatten", [empty])


def test_reflection_of_one_value_and_pytorch():
    """PyTorch pads the last axes; NumPy's "reflect" is its "reflect", "edge" its "replicate"."""
    amounts = ints(0, 0, 2, 3, 0, 0, 1, 4)
    for mode, theirs in (("reflect", "reflect"), ("edge", "replicate"), ("wrap", "circular")):
        expected = torch.nn.functional.pad(torch.from_numpy(X), (3, 4, 2, 1), mode=theirs).numpy()
        np.testing.assert_array_equal(run("Pad", X, amounts, mode=mode), expected)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"value": np.array([1, 2], np.int8)}, np.array([1, 2], np.int8)),
        ({"value_float": 0.5}, np.array(0.5, np.float32)),
        ({"value_floats": (0.5, 1.5)}, np.array([0.5, 1.5], np.float32)),
        ({"value_int": 3}, np.array(3, np.int64)),
        ({"value_ints": (3, 4)}, np.array([3, 4], np.int64)),
        ({"value_string": "a"}, np.array("a", object)),
        ({"value_strings": ("a", "bc")}, np.array(["a", "bc"], object)),
    ],
)
def test_constants(attributes, expected):
    found = run("Constant", **attributes)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "message"),
    [
        ("Constant", [], {}, "found 0 values, wanted one"),
        ("Constant", [], {"value_int": 1, "value_float": 1.0}, "found 2 values"),
        ("Unsqueeze", [X], {}, "found no axes"),
        ("Slice", [X, ints(1)], {}, "found no starts or no ends"),
        ("Pad", [X, ints(0, 0, 0, 0, 0, 0, 0, 0)], {"mode": "mirror"}, "in mode 'mirror'"),
        ("Pad", [X], {}, "found pads None"),
    ],
)
def test_refuses_incomplete_nodes(op_type, inputs, attributes, message):
    with pytest.raises(ModelError, match=message):
        run(op_type, *inputs, **attributes)


def test_pads_of_another_rank():
    with pytest.raises(DataError, match="Pad"):
        run("Pad", X, ints(0, 1, 0, 1))


def test_strings(same):
    words = np.array([["a", "b"], ["c", ""]], object)
    same("Concat", [words, words], axis=1)
    same("Gather", [words, ints(1)])
    assert run("Pad", words, ints(0, 0, 0, 1)).tolist() == [["a", "b", ""], ["c", "", ""]]


def test_constant_of_shape(same):
    same("ConstantOfShape", [ints(2, 0, 3)])
    (found,) = operators.find("", "ConstantOfShape")([ints(2, 3)], {"value": np.array([7], np.int8)}, 21)
    np.testing.assert_array_equal(found, np.full((2, 3), 7, np.int8))
    assert found.dtype == np.int8
    assert run("ConstantOfShape", ints()).shape == ()
