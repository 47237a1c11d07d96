import subprocess
import sys
from contextlib import suppress

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, parser

from fgq.errors import DataError, FgqError, ModelError
from fgq.runtime import operators
from fgq.runtime.operators.operator import Operator

X = np.arange(6.0, dtype=np.float32).reshape(2, 3)


def node(text, domains=""):
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17{domains}]> g (float[N] x) => (float y) {{{text}}}'
    )
    return next(iter(ir.serde.deserialize_model(model).graph))


def test_found_by_domain_and_name():
    assert operators.find("", "Relu") is operators.find("ai.onnx", "Relu")
    assert operators.find("com.microsoft", "Relu") is None
    assert operators.find("", "Conv") is None
    assert operators.names() == sorted(set(operators.names()))
    assert all(isinstance(operators.find("", name), Operator) for name in operators.names())
    assert repr(operators.find("", "Relu")) == "Operator('Relu')"


def test_attributes_as_python_values():
    found = operators.attributes_of(node('y = Resize<mode = "linear", axes = [1, 2], antialias = 1>(x)'))
    assert found == {"mode": "linear", "axes": (1, 2), "antialias": 1}
    value = operators.attributes_of(node("y = Constant<value = int64[2] {3, 4}>()"))["value"]
    np.testing.assert_array_equal(value, [3, 4])


def test_refuses_an_attribute_of_a_function_around():
    inner = ir.Node(
        "", "Relu", [], attributes=[ir.RefAttr("alpha", "beta", ir.AttributeType.FLOAT)], name="n"
    )
    with pytest.raises(ModelError, match="n: found a reference for the attribute alpha"):
        operators.attributes_of(inner)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "opset", "error", "message"),
    [
        ("Relu", [X], {}, 6, ModelError, "^Relu: found opset 6, wanted at least 7$"),
        ("Relu", [X], {"alpha": 1.0}, 17, ModelError, "^Relu: found the attributes alpha, wanted none$"),
        ("Concat", [X], {}, 17, ModelError, "^Concat: found the attributes none, wanted axis$"),
        ("Relu", [], {}, 17, ModelError, "^Relu: found 0 inputs, wanted 1$"),
        ("Relu", [None], {}, 17, ModelError, "^Relu: found 0 inputs, wanted 1$"),
        ("Add", [X, X, X], {}, 17, ModelError, "^Add: found 3 inputs, wanted 2$"),
        ("Clip", [X] * 4, {}, 17, ModelError, "^Clip: found 4 inputs, wanted 1 to 3$"),
        ("Concat", [], {"axis": 0}, 17, ModelError, "^Concat: found 0 inputs, wanted at least 1$"),
        ("Add", [X, X[:, :2]], {}, 17, DataError, r"^Add: found float32\[2, 3\], float32\[2, 2\], which"),
        ("Gather", [X, np.array([5])], {}, 17, DataError, "^Gather: found .* which do not fit"),
        ("Softmax", [X], {"axis": 7}, 17, DataError, "^Softmax: found .* which do not fit"),
        ("Gelu", [X], {"approximate": "no"}, 20, ModelError, "^Gelu: approximate: found 'no', wanted none"),
    ],
)  # fmt: skip
def test_says_what_does_not_fit(op_type, inputs, attributes, opset, error, message):
    with pytest.raises(error, match=message):
        operators.find("", op_type)(inputs, attributes, opset)


def test_refuses_more_outputs_than_there_are():
    with pytest.raises(ModelError, match="Relu: found 2 outputs, wanted at most 1"):
        operators.find("", "Relu")([X], {}, 17, outputs=2)


def test_results_are_arrays_also_without_dimensions():
    (found,) = operators.find("", "Add")([np.array(1.0), np.array(2.0)], {}, 17)
    assert isinstance(found, np.ndarray)
    assert found == 3


def test_infinities_and_wrapped_integers_are_no_warnings():
    add, divide = operators.find("", "Add"), operators.find("", "Div")
    (wrapped,) = add([np.array([250], np.uint8), np.array([10], np.uint8)], {}, 17)
    assert wrapped.tolist() == [4]
    (infinite,) = divide([np.array([1.0], np.float32), np.array([0.0], np.float32)], {}, 17)
    assert np.isinf(infinite).all()


def some_input(rng):
    dtype = rng.choice([np.float32, np.uint8, np.int8, np.int64, np.bool_, np.float16])
    shape = rng.integers(0, 5, rng.integers(0, 5))
    choices = [None, rng.integers(-3, 9, shape).astype(dtype), np.array(["a"], object), [X, X]]
    return choices[rng.choice(4, p=[0.05, 0.85, 0.05, 0.05])]


def some_value(kind, rng):
    return {
        onnx.AttributeProto.INT: lambda: int(rng.integers(-3, 9)),
        onnx.AttributeProto.INTS: lambda: rng.integers(-2, 4, rng.integers(0, 5)).tolist(),
        onnx.AttributeProto.FLOAT: lambda: float(rng.normal()),
        onnx.AttributeProto.STRING: lambda: str(
            rng.choice(["SAME_UPPER", "linear", "cubic", "reflect", "tanh"])
        ),
    }.get(kind, lambda: None)()


@pytest.mark.parametrize("name", operators.names())
def test_nonsense_is_refused_by_our_own_errors(name):
    """A model is untrusted: whatever its nodes say, there is a result or an FgqError."""
    schema, rng = onnx.defs.get_schema(name), np.random.default_rng(0)
    for _ in range(150):
        inputs = [some_input(rng) for _ in range(rng.integers(0, min(schema.max_input, 4) + 1))]
        attributes = {
            key: some_value(attribute.type.value, rng)
            for key, attribute in schema.attributes.items()
            if rng.random() < 0.5
        }
        with suppress(FgqError):
            assert isinstance(
                operators.find("", name)(inputs, attributes, int(rng.choice([9, 12, 17, 25]))), tuple
            )


def test_loading_the_operators_loads_no_onnxruntime_kernels_of_ours():
    """The products import compiled code when they are called."""
    code = (
        "import sys, types; sys.modules['fgq.runtime'] = types.ModuleType('fgq.runtime');"
        "import fgq, os; sys.modules['fgq.runtime'].__path__ = [os.path.join(fgq.__path__[0], 'runtime')];"
        "import fgq.runtime.operators;"
        "print([name for name in ('numba', 'torch', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_strings_pass_through_what_moves_values():
    words = helper.np.array([["a", "b"]], object)
    (turned,) = operators.find("", "Transpose")([words], {}, 17)
    assert turned.tolist() == [["a"], ["b"]]
