"""Other engines on the same layers: onnxruntime, and OpenVINO where it is installed.

Each engine gets the form of the layer that it runs fastest, its inputs and outputs where it wants them, and
as many threads as ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from fgq.eval.bench import models
from fgq.eval.bench.drawn_layers import DrawnLayer
from fgq.eval.bench.shapes import Conv
from fgq.support.temporary import temporary_folder

FLOAT = "onnxruntime float"
QLINEAR_CONV = "onnxruntime QLinearConv"
QLINEAR_MATMUL = "onnxruntime QLinearMatMul"
MATMUL_INTEGER = "onnxruntime MatMulInteger"
NBITS_2 = "onnxruntime MatMulNBits 2-bit"
NBITS_4 = "onnxruntime MatMulNBits 4-bit"
OPENVINO = "OpenVINO int8"

_NCHWC = "com.microsoft.nchwc"
_PROBES = 5

Call = Callable[[], NDArray[Any]]
"""Runs a layer and returns its result, which the next call overwrites."""


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """An engine ready to run a layer.

    Parameters
    ----------
    form : str
        The form of the layer that it was fastest with.
    run : callable
        Runs it.
    """

    form: str
    run: Call


def prepare_baselines(layer: DrawnLayer, threads: int) -> tuple[dict[str, Baseline], dict[str, str]]:
    """Make every engine ready that can do a layer.

    Parameters
    ----------
    layer : DrawnLayer
    threads : int
        How many each may use.

    Returns
    -------
    ready : dict of str to Baseline
        By name.
    missing : dict of str to str
        Why the others are not there.
    """
    ready, missing = dict[str, Baseline](), dict[str, str]()
    for name, forms in _engines(layer, threads).items():
        loaded, reasons = dict[str, Call](), list[str]()
        for form, load in forms.items():
            try:
                loaded[form] = load()
                loaded[form]()
            except Exception as error:  # engines have error types of their own
                loaded.pop(form, None)
                reasons.append(f"{form}: {(str(error) or type(error).__name__).splitlines()[0]}")
        if loaded:
            ready[name] = _fastest(loaded)
        else:
            missing[name] = "; ".join(reasons)
    return ready, missing


def _engines(layer: DrawnLayer, threads: int) -> Mapping[str, Mapping[str, Callable[[], Call]]]:
    """Return for each engine its forms and what loads them."""

    def stock(build: Callable[[DrawnLayer], onnx.ModelProto]) -> Callable[[], Call]:
        return lambda: OnnxruntimeCall.of(layer, build(layer), threads)

    def openvino(build: Callable[[DrawnLayer], onnx.ModelProto]) -> Callable[[], Call]:
        return lambda: OpenvinoCall.of(layer, build(layer), threads)

    if isinstance(layer.shape, Conv):
        return {
            FLOAT: {"NCHW": stock(models.float_conv), "NCHWc": stock(blocked_conv)},
            QLINEAR_CONV: {
                "NCHW": stock(models.integer_conv),
                "NHWC": stock(partial(models.integer_conv, channels_last=True)),
            },
            OPENVINO: {
                "NCHW": openvino(models.quantized_conv),
                "NHWC": openvino(partial(models.quantized_conv, channels_last=True)),
            },
        }
    return {
        FLOAT: {"MatMul": stock(models.float_matmul)},
        QLINEAR_MATMUL: {"static scales": stock(models.static_matmul)},
        MATMUL_INTEGER: {"dynamic scales": stock(models.dynamic_matmul)},
        NBITS_2: {"block 64": stock(partial(models.blockwise_matmul, bits=2))},
        NBITS_4: {"block 64": stock(partial(models.blockwise_matmul, bits=4))},
        OPENVINO: {"static scales": openvino(models.quantized_matmul)},
    }


def _fastest(loaded: Mapping[str, Call]) -> Baseline:
    def probe(form: str) -> float:
        times = []
        for _ in range(_PROBES):
            began = time.perf_counter()
            loaded[form]()
            times.append(time.perf_counter() - began)
        return min(times)

    form = next(iter(loaded)) if len(loaded) == 1 else min(loaded, key=probe)
    return Baseline(form, loaded[form])


class OnnxruntimeCall:
    """A model with its input and output bound, so that a call is the work and little else.

    Parameters
    ----------
    model : ModelProto
        Of one input and one output.
    x : ndarray
        Its input.
    threads : int
        How many to use; they spin between calls, as is onnxruntime's default.
    """

    def __init__(self, model: onnx.ModelProto, x: NDArray[Any], threads: int) -> None:
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), _options(threads), providers=["CPUExecutionProvider"]
        )
        given, made = self._session.get_inputs()[0].name, self._session.get_outputs()[0].name
        self._x, self._result = x, self._session.run(None, {given: x})[0]
        self._binding = self._session.io_binding()
        for bind, name, array in (
            (self._binding.bind_input, given, self._x),
            (self._binding.bind_output, made, self._result),
        ):
            bind(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    @classmethod
    def of(cls, layer: DrawnLayer, model: onnx.ModelProto, threads: int) -> OnnxruntimeCall:
        """Bind a layer's activations to a model of it."""
        return cls(model, models.feed(layer, model), threads)

    def __call__(self) -> NDArray[Any]:
        """Run the model."""
        self._session.run_with_iobinding(self._binding)
        result: NDArray[Any] = self._result
        return result


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()  # stock, threads spinning: not those of `fgq.graph.ort`
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    return options


def blocked_conv(layer: DrawnLayer) -> onnx.ModelProto:
    """Return a float Conv in onnxruntime's blocked layout, without bringing activations into it and back.

    Within a network they stay in that layout from one convolution to the next.

    Raises
    ------
    ValueError
        If onnxruntime does not use the layout here.
    """
    with temporary_folder() as folder:
        path = folder / "optimized.onnx"
        options = _options(1)
        options.optimized_model_filepath = str(path)
        plain = models.float_conv(layer)
        onnxruntime.InferenceSession(plain.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(path)
    nodes = [node for node in optimized.graph.node if node.domain == _NCHWC and node.op_type == "Conv"]
    if len(nodes) != 1:
        raise ValueError("onnxruntime keeps NCHW for this layer")
    node = nodes[0]
    shape = [size.dim_value for size in plain.graph.input[0].type.tensor_type.shape.dim]
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)],
        [tensor for tensor in optimized.graph.initializer if tensor.name in node.input],
    )
    return helper.make_model(graph, opset_imports=optimized.opset_import, ir_version=optimized.ir_version)


class OpenvinoCall:
    """A model in OpenVINO, its input and output bound.

    Parameters
    ----------
    model : ModelProto
        Of one input and one output.
    x : ndarray
        Its input.
    threads : int
        How many to use.

    Raises
    ------
    ImportError
        If OpenVINO is not installed (extra ``peers``).
    """

    def __init__(self, model: onnx.ModelProto, x: NDArray[Any], threads: int) -> None:
        import openvino

        options = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        read = openvino.Core().read_model(model.SerializeToString())
        compiled = openvino.compile_model(read, "CPU", options)
        made = compiled.output(0)
        self._x, self._result = x, np.empty(tuple(made.shape), made.element_type.to_dtype())
        self._request = compiled.create_infer_request()
        self._request.set_input_tensor(openvino.Tensor(self._x, shared_memory=True))
        self._request.set_output_tensor(openvino.Tensor(self._result, shared_memory=True))

    @classmethod
    def of(cls, layer: DrawnLayer, model: onnx.ModelProto, threads: int) -> OpenvinoCall:
        """Bind a layer's activations to a model of it."""
        return cls(model, models.feed(layer, model), threads)

    def __call__(self) -> NDArray[Any]:
        """Run the model."""
        self._request.infer()
        return self._result
