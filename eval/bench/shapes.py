"""The layers that are timed."""

from __future__ import annotations

from dataclasses import dataclass

from fgq.kernels.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class MatMul:
    """The product of `rows` activations with a weight matrix.

    Parameters
    ----------
    rows, inputs, outputs : int
        Rows of activations, K and M.
    """

    rows: int
    inputs: int
    outputs: int

    op = "MatMul"
    count = 1
    ternary = True
    """Whether a converter gives the layer ternary weights, or 8 bits as it does the first one."""

    def __str__(self) -> str:
        return f"{self.rows}x{self.inputs}x{self.outputs}"

    @property
    def weights(self) -> tuple[int, ...]:
        """Shape of the weights, [M, K]."""
        return self.outputs, self.inputs

    @property
    def pixels(self) -> int:
        """Rows of the matrix product."""
        return self.rows

    @property
    def macs(self) -> int:
        """Multiply-adds, of which a multiplication-free kernel multiplies few."""
        return self.rows * self.inputs * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Conv:
    """A convolution with a square kernel, on one square image, padded to keep its size but for the stride.

    Parameters
    ----------
    size : int
        Height and width of the image.
    channels, outputs : int
        Input and output channels, C and M.
    taps, stride : int
        Of the kernel, down and right.
    count : int
        How often the network has such a layer.
    ternary : bool
        Whether a converter gives the layer ternary weights, or 8 bits as it does the first one.
    """

    size: int
    channels: int
    outputs: int
    taps: int
    stride: int = 1
    count: int = 1
    ternary: bool = True

    op = "Conv"

    def __str__(self) -> str:
        stride = f"/{self.stride}" if self.stride > 1 else ""
        return f"{self.size}x{self.size}x{self.channels} {self.taps}x{self.taps}{stride} {self.outputs}"

    @property
    def weights(self) -> tuple[int, ...]:
        """Shape of the weights, [M, kh, kw, C]."""
        return self.outputs, self.taps, self.taps, self.channels

    @property
    def window(self) -> Window:
        """How the kernel moves."""
        pad = self.taps // 2
        return Window(strides=(self.stride, self.stride), pads=(pad, pad, pad, pad))

    @property
    def output_size(self) -> int:
        """Height and width of the output."""
        return self.window.output_size(self.size, self.size, (self.taps, self.taps))[0]

    @property
    def pixels(self) -> int:
        """Rows of the matrix product that the convolution is."""
        return self.output_size**2

    @property
    def macs(self) -> int:
        """Multiply-adds, of which a multiplication-free kernel multiplies few."""
        return self.pixels * self.outputs * self.taps**2 * self.channels


Shape = MatMul | Conv

GEMV = MatMul(rows=1, inputs=4096, outputs=4096)
GEMV_WIDE = MatMul(rows=1, inputs=4096, outputs=14336)
GEMM = MatMul(rows=128, inputs=4096, outputs=4096)

LLM: tuple[Shape, ...] = (
    GEMV,
    GEMV_WIDE,
    MatMul(rows=1, inputs=14336, outputs=4096),
    MatMul(rows=8, inputs=4096, outputs=4096),
    GEMM,
)
"""Projections of a decoder of 7 to 8 billion weights: one token, a few, and a prompt."""


def resnet50(image_size: int = 224, width: int = 64) -> tuple[Shape, ...]:
    """Return the distinct convolutions of ResNet-50 v1.5, with how often each occurs.

    He et al., "Deep residual learning for image recognition" (2016), table 1; v1.5 has the stride in the
    3x3 convolutions. There are 23, the first of which keeps 8 bits, and 53 with repetitions.

    Parameters
    ----------
    image_size : int
        Height and width of the image.
    width : int
        Channels after the first convolution.
    """
    stem = Conv(size=image_size, channels=3, outputs=width, taps=7, stride=2, ternary=False)
    counts = dict[Conv, int]()

    def add(size: int, channels: int, outputs: int, taps: int = 1, stride: int = 1) -> None:
        conv = Conv(size=size, channels=channels, outputs=outputs, taps=taps, stride=stride)
        counts[conv] = counts.get(conv, 0) + 1

    size, channels = image_size // 4, width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        narrow, wide = width << stage, 4 * width << stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            add(size, channels, narrow)
            add(size, narrow, narrow, 3, stride)
            add(size // stride, narrow, wide)
            if block == 0:
                add(size, channels, wide, 1, stride)
            size, channels = size // stride, wide
    repeated = [
        Conv(
            size=conv.size, channels=conv.channels, outputs=conv.outputs, taps=conv.taps,
            stride=conv.stride, count=count,
        )
        for conv, count in counts.items()
    ]  # fmt: skip
    return stem, *repeated


RESNET50 = resnet50()
