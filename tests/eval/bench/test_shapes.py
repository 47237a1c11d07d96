from collections import Counter
from math import prod

import pytest
import torch

from fgq.eval.bench.shapes import LLM, RESNET50, Conv, MatMul, resnet50
from fgq.eval.topologies import resnet50 as transformers_resnet50


def test_the_distinct_convolutions_are_those_of_the_network():
    """The network is that of the transformers package, at the size of the paper."""
    network = transformers_resnet50()
    found = Counter()

    def record(module, inputs, output):
        size, taps, stride = inputs[0].shape[-1], module.kernel_size[0], module.stride[0]
        found[size, module.in_channels, module.out_channels, taps, stride] += 1
        assert output.shape[-1] == stems[size, module.in_channels, module.out_channels, taps, stride]

    stems = {(c.size, c.channels, c.outputs, c.taps, c.stride): c.output_size for c in RESNET50}
    for module in network.module.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(record)
    with torch.inference_mode():
        network.module(torch.zeros(1, 3, 224, 224))
    assert found == {(c.size, c.channels, c.outputs, c.taps, c.stride): c.count for c in RESNET50}


def test_resnet50_has_the_published_size():
    assert len(RESNET50) == 23
    assert sum(conv.count for conv in RESNET50) == 53
    assert [conv.ternary for conv in RESNET50] == [False] + [True] * 22
    # He et al.: 3.8e9 with the stride in the first 1x1; v1.5 does 4.1e9, 2e6 of them in its last layer
    assert sum(conv.count * conv.macs for conv in RESNET50) == pytest.approx(4.09e9, rel=1e-3)
    # 25.56e6 parameters less 2.05e6 of the last layer and 53e3 of normalization
    assert sum(conv.count * prod(conv.weights) for conv in RESNET50) == 23_454_912


def test_names_are_distinct():
    names = [str(shape) for shape in (*LLM, *RESNET50, *resnet50(32, 16))]
    assert len(set(names)) == len(names)
    assert str(MatMul(rows=1, inputs=2, outputs=3)) == "1x2x3"
    assert str(Conv(size=9, channels=4, outputs=8, taps=3, stride=2)) == "9x9x4 3x3/2 8"


def test_macs_are_those_of_the_matrix_product():
    conv = Conv(size=9, channels=4, outputs=8, taps=3, stride=2)
    assert conv.output_size == 5
    assert conv.macs == 25 * 8 * 3 * 3 * 4
    assert MatMul(rows=5, inputs=6, outputs=7).macs == 5 * 6 * 7
