"""Write the trained character network as ONNX, layer by layer.

The graph is built from the modules directly: every node and every array keeps its module's name
(``stage2.0.conv1``), and the batch normalizations stay nodes of their own, with the running statistics, as
in a network that has been trained but not yet prepared for inference.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from fgq.eval.characters.classes import CLASSES
from fgq.eval.characters.network import BasicBlock, Bottleneck, CharacterNet
from fgq.eval.characters.render import SIZE

OPSET = 17
_IR_VERSION = 8  # the version that came with opset 17


class _Graph:
    """Nodes and arrays in the order of the data; each method adds a layer and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.arrays: list[TensorProto] = []

    def node(self, kind: str, name: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{name}.output"
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def array(self, name: str, value: Tensor) -> str:
        self.arrays.append(numpy_helper.from_array(np.ascontiguousarray(value.detach().numpy()), name))
        return name

    def conv_bn(self, prefix: str, suffix: str, conv: nn.Conv2d, bn: nn.BatchNorm2d, x: str) -> str:
        name = f"{prefix}.conv{suffix}"
        pads, strides = [conv.padding[0]] * 4, list(conv.stride)
        weight = self.array(f"{name}.weight", conv.weight)
        x = self.node("Conv", name, x, weight, kernel_shape=conv.kernel_size, pads=pads, strides=strides)
        name = f"{prefix}.bn{suffix}"
        parts = ("weight", "bias", "running_mean", "running_var")
        arrays = [self.array(f"{name}.{part}", getattr(bn, part)) for part in parts]
        return self.node("BatchNormalization", name, x, *arrays, epsilon=bn.eps)

    def block(self, name: str, block: BasicBlock | Bottleneck, x: str) -> str:
        shortcut = x
        if block.projection is not None:
            shortcut = self.conv_bn(f"{name}.projection", "", block.projection.conv, block.projection.bn, x)
        layers = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        if isinstance(block, Bottleneck):
            layers.append((block.conv3, block.bn3))
        for number, (conv, bn) in enumerate(layers, 1):
            x = self.conv_bn(name, str(number), conv, bn, x)
            if number < len(layers):
                x = self.node("Relu", f"{name}.relu{number}", x)
        return self.node("Relu", f"{name}.relu", self.node("Add", f"{name}.add", x, shortcut))


def to_onnx(network: CharacterNet) -> onnx.ModelProto:
    """Build the ONNX model of a network in evaluation mode.

    Returns
    -------
    onnx.ModelProto
        Opset 17; input ``image`` float32 [batch, 1, 32, 32], output ``logits`` float32 [batch, 128].
    """
    graph = _Graph()
    x = graph.conv_bn("stem", "", network.stem.conv, network.stem.bn, "image")
    x = graph.node("Relu", "stem.relu", x)
    for stage in ("stage1", "stage2", "stage3"):
        for number, block in enumerate(getattr(network, stage)):
            x = graph.block(f"{stage}.{number}", block, x)
    x = graph.node("Flatten", "flatten", graph.node("GlobalAveragePool", "pool", x))
    weight, bias = graph.array("fc.weight", network.fc.weight), graph.array("fc.bias", network.fc.bias)
    graph.node("Gemm", "fc", x, weight, bias, output="logits", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(CLASSES)])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "characters", [image], [logits], graph.arrays),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="fgq.eval.characters",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def export(network: CharacterNet, path: Path) -> None:
    """Write the ONNX model of a trained network, whole or not at all."""
    beside = path.with_suffix(".tmp")
    onnx.save(to_onnx(network), beside)
    os.replace(beside, path)
