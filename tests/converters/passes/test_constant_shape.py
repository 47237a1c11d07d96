import numpy as np
import pytest

X = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)

BATCH = """
    sizes = Shape(x)
    first = Constant <value_ints = [0]> ()
    batch = Gather(sizes, first)
"""


def model_of(make_model, rest, given="float[B,3,4]", text=BATCH):
    return make_model(f"({given} x) => (float y) {{ {text} {rest} }}")


@pytest.mark.parametrize("sizes", ["12", "2, 6", "3, 1, 4"])
def test_one_open_axis(make_model, prepared, sizes):
    rest = (
        f"rest = Constant <value_ints = [{sizes}]> () s = Concat <axis = 0> (batch, rest) y = Reshape(x, s)"
    )
    assert prepared(model_of(make_model, rest), {"x": X}) == {"Reshape": 1}


def test_the_open_axis_may_stand_anywhere(make_model, prepared):
    rest = """
        a = Constant <value_ints = [3]> ()
        b = Constant <value_ints = [4]> ()
        s = Concat <axis = 0> (a, batch, b)
        y = Reshape(x, s)
    """
    assert prepared(model_of(make_model, rest), {"x": X}) == {"Reshape": 1}


@pytest.mark.parametrize("sizes", ["-1", "-1, 4", "0, 4"])
def test_shapes_that_leave_more_open_stay(make_model, prepared, sizes):
    rest = (
        f"rest = Constant <value_ints = [{sizes}]> () s = Concat <axis = 0> (batch, rest) y = Reshape(x, s)"
    )
    assert prepared(model_of(make_model, rest), {"x": X})["Concat"] == 1


def test_two_computed_sizes_stay(make_model, prepared):
    rest = "s = Concat <axis = 0> (batch, batch, batch) y = Reshape(x, s)"
    found = prepared(model_of(make_model, rest, "float[B,C,D]"), {"x": X[:1, :1, :1]})
    assert found["Concat"] == 1


def test_parts_of_several_sizes_stay(make_model, prepared):
    text = "sizes = Shape(x)"
    rest = "one = Constant <value_ints = [1]> () s = Concat <axis = 0> (sizes, one) y = Reshape(x, s)"
    assert prepared(model_of(make_model, rest, text=text), {"x": X})["Concat"] == 1
