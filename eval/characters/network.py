"""The residual network of the character images, after He et al. (2016), in plain layers.

::

    image  [n, 1, 32, 32]
    stem   3x3 stride 2                     [n,  64, 16, 16]
    stage1 basic                            [n,  64, 16, 16]
    stage2 basic stride 2, bottleneck       [n, 128,  8,  8]
    stage3 basic stride 2, bottleneck x2    [n, 256,  4,  4]
    global average pooling, linear          [n, 128]

Basic blocks have two 3x3 convolutions (He et al. 2016, "Deep Residual Learning for Image Recognition",
section 3.3), bottlenecks a 1x1, a 3x3 and a 1x1 (section 4.1, "Deeper Bottleneck Architectures"); a block
that changes the shape has a 1x1 convolution on its shortcut (option B). Batch normalization follows every
convolution.

That is the bundled network. `CharacterNet` also takes a width, by which all channels are multiplied, and a
depth, by which every stage gets longer: the family of ``fgq pareto``.
"""

import math

from torch import Tensor, nn

from fgq.errors import ConfigError
from fgq.eval.characters.classes import CLASSES


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Normalized(nn.Module):
    """A convolution and its batch normalization."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv, self.bn = _conv(inputs, outputs, kernel, stride), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        result: Tensor = self.bn(self.conv(x))
        return result


class _Block(nn.Module):
    """``relu(body(x) + shortcut(x))``; a subclass sets the body's layers and runs them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.projection: Normalized | None = None
        if stride != 1 or inputs != outputs:
            self.projection = Normalized(inputs, outputs, 1, stride)

    def body(self, x: Tensor) -> Tensor:
        """Compute the residual."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        shortcut = x if self.projection is None else self.projection(x)
        result: Tensor = self.relu(self.body(x) + shortcut)
        return result


class BasicBlock(_Block):
    """Two 3x3 convolutions; the first has the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, stride)
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)

    def body(self, x: Tensor) -> Tensor:
        """Compute the residual."""
        x = self.relu(self.bn1(self.conv1(x)))
        residual: Tensor = self.bn2(self.conv2(x))
        return residual


class Bottleneck(_Block):
    """1x1 to half the channels, 3x3 there, 1x1 back."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 1)
        narrow = channels // 2
        self.conv1, self.bn1 = _conv(channels, narrow, 1), nn.BatchNorm2d(narrow)
        self.conv2, self.bn2 = _conv(narrow, narrow, 3), nn.BatchNorm2d(narrow)
        self.conv3, self.bn3 = _conv(narrow, channels, 1), nn.BatchNorm2d(channels)

    def body(self, x: Tensor) -> Tensor:
        """Compute the residual."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        residual: Tensor = self.bn3(self.conv3(x))
        return residual


class CharacterNet(nn.Module):
    """Grey images to one logit per class.

    The input is float32 [n, 1, 32, 32] with values in 0..1, the output float32 [n, 128].

    Parameters
    ----------
    width : float
        Factor of the channels 64, 128 and 256 of the stages, which are rounded to even numbers.
    depth : int
        Further bottlenecks at the end of every stage.

    Raises
    ------
    ConfigError
        If the width is not positive or the depth is negative.
    """

    def __init__(self, width: float = 1.0, depth: int = 0) -> None:
        super().__init__()
        if not 0 < width < math.inf:
            raise ConfigError(f"width: found {width}, wanted a positive number")
        if depth < 0:
            raise ConfigError(f"depth: found {depth}, wanted at least 0")
        # Even, since a bottleneck halves them.
        c1, c2, c3 = (max(2, 2 * round(channels * width / 2)) for channels in (64, 128, 256))

        def further(channels: int, count: int) -> list[nn.Module]:
            return [Bottleneck(channels) for _ in range(count + depth)]

        self.stem = Normalized(1, c1, 3, 2)
        self.relu = nn.ReLU()
        self.stage1 = nn.Sequential(BasicBlock(c1, c1), *further(c1, 0))
        self.stage2 = nn.Sequential(BasicBlock(c1, c2, 2), *further(c2, 1))
        self.stage3 = nn.Sequential(BasicBlock(c2, c3, 2), *further(c3, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c3, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Compute the logits."""
        x = self.stage3(self.stage2(self.stage1(self.relu(self.stem(image)))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits
