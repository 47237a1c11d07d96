"""The nine networks of onnx's backend tests, with random weights in place of their constants.

The files ``light_*.onnx`` inside the onnx package are networks exported by Caffe2 in 2018 (opset 9, IR
version 3, every weight also a graph input) whose weights were replaced by ConstantOfShape 0.02 to make them
small. Here the weights are tensors again, as in the files that were published then.
"""

from math import prod, sqrt
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fgq.errors import ConfigError
from fgq.graph import ort

LIGHT_MODELS = (
    "light_bvlc_alexnet",
    "light_densenet121",
    "light_inception_v1",
    "light_inception_v2",
    "light_resnet50",
    "light_shufflenet",
    "light_squeezenet",
    "light_vgg19",
    "light_zfnet512",
)
"""Their names: 1.2 M (SqueezeNet) to 144 M parameters (VGG-19)."""

LOGIT_DEVIATION = 2.0
"""Standard deviation of the logits: probabilities spread, and none is far above all others."""


def light_model(name: str, seed: int = 0) -> onnx.ModelProto:
    """Load one of the nine networks and give it random weights.

    Convolutions and Gemms get normal weights of variance 2 / fan_in (He et al., "Delving deep into
    rectifiers", 2015, equation 10), scales lie between 0.5 and 1.5 with one in sixteen negative, biases and
    shifts are small. The statistics of every BatchNormalization are those of its input for one image of
    white noise, and the last layer is scaled to logits of deviation 2, so that activations keep their size.

    Parameters
    ----------
    name : str
        One of `LIGHT_MODELS`.
    seed : int
        Seed of the weights.

    Returns
    -------
    onnx.ModelProto
        Takes one image, float32 [1, 3, 224, 224], and gives 1000 probabilities (DenseNet: logits).

    Raises
    ------
    ConfigError
        If there is no network of this name.
    """
    if name not in LIGHT_MODELS:
        raise ConfigError(f"light model {name!r}: not known, wanted one of {', '.join(LIGHT_MODELS)}.")
    model = onnx.load(Path(onnx.__file__).parent / "backend/test/data/light" / f"{name}.onnx")
    rng = np.random.default_rng(seed)
    shapes = _replace_constants(model.graph)
    uses = _uses(model.graph)
    for initializer in model.graph.initializer:
        # What nothing uses is a leftover of the original export; it keeps its value.
        if initializer.data_type == onnx.TensorProto.FLOAT and initializer.name in uses:
            node, position = uses[initializer.name]
            shape = shapes.get(initializer.name, tuple(initializer.dims))
            _assign(initializer, _random(node.op_type, position, shape, rng))
    _fit_to_image(model, uses, rng)
    return model


def _replace_constants(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Turn every ConstantOfShape into an initializer and graph input of its name; return their shapes."""
    initializers = {i.name: i for i in graph.initializer}
    inputs = {i.name: i for i in graph.input}
    shapes = {}
    for node in [n for n in graph.node if n.op_type == "ConstantOfShape"]:
        shape_name, name = node.input[0], node.output[0]
        shapes[name] = tuple(int(d) for d in numpy_helper.to_array(initializers[shape_name]))
        graph.node.remove(node)
        graph.initializer.remove(initializers[shape_name])
        graph.input.remove(inputs[shape_name])
        graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT)
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shapes[name]))
    return shapes


def _uses(graph: onnx.GraphProto) -> dict[str, tuple[onnx.NodeProto, int]]:
    """Say for each value which node takes it at which position, looking through changes of shape."""
    uses: dict[str, tuple[onnx.NodeProto, int]] = {}
    for node in reversed(graph.node):
        for position, name in enumerate(node.input):
            reshaped = node.op_type in ("Unsqueeze", "Reshape") and position == 0
            uses[name] = uses[node.output[0]] if reshaped else (node, position)
    return uses


def _random(
    operator: str, position: int, shape: tuple[int, ...], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a weight for this place; all Gemms of the nine networks hold theirs as [out, in]."""
    match operator, position:
        case "Conv", 1:
            return rng.standard_normal(shape, np.float32) * np.float32(sqrt(2 / prod(shape[1:])))
        case "Gemm", 1:
            return rng.standard_normal(shape, np.float32) * np.float32(sqrt(2 / shape[-1]))
        case (("BatchNormalization" | "Mul"), 1):
            sign = np.where(rng.random(shape) < 1 / 16, -1, 1)
            return (sign * rng.uniform(0.5, 1.5, shape)).astype(np.float32)
        case _:
            return rng.standard_normal(shape, np.float32) * np.float32(0.1)


def _fit_to_image(
    model: onnx.ModelProto, uses: dict[str, tuple[onnx.NodeProto, int]], rng: np.random.Generator
) -> None:
    """Fit BatchNormalization's statistics and the size of the logits to one image of noise.

    InstanceNormalization divides by the statistics of the image itself. With it in place of every
    BatchNormalization, one run shows each of them the input that it has once all before it are set.
    """
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "Gemm")]
    batch_norms = [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    image = rng.standard_normal((1, 3, 224, 224), np.float32)
    *activations, logits = _run_normalized(
        model, [*(n.input[0] for n in batch_norms), layers[-1].output[0]], image
    )
    initializers = {i.name: i for i in model.graph.initializer}
    for node, activation in zip(batch_norms, activations, strict=True):
        _assign(initializers[node.input[3]], activation.mean((0, 2, 3)))
        _assign(initializers[node.input[4]], activation.var((0, 2, 3)))
    weight = next(i for name, i in initializers.items() if uses.get(name) == (layers[-1], 1))
    _assign(weight, numpy_helper.to_array(weight) * (LOGIT_DEVIATION / logits.std()))


def _assign(initializer: onnx.TensorProto, values: NDArray[np.float32]) -> None:
    """Replace an initializer's values, and with them its shape."""
    initializer.CopyFrom(numpy_helper.from_array(values, initializer.name))


def _run_normalized(
    model: onnx.ModelProto, names: list[str], image: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """Run with InstanceNormalization for BatchNormalization; give the values of these names."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for node in probe.graph.node:
        if node.op_type == "BatchNormalization":
            node.op_type = "InstanceNormalization"
            del node.input[3:]
            kept = [a for a in node.attribute if a.name == "epsilon"]
            del node.attribute[:]
            node.attribute.extend(kept)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = ort.open_session(probe.SerializeToString(), "probe")
    activations: list[NDArray[np.float32]] = session.run(names, {session.get_inputs()[0].name: image})
    return activations
