"""The geometry of a two-dimensional convolution."""

from __future__ import annotations

from dataclasses import dataclass

from fgq.errors import KernelError

_LARGEST = 2**31 - 1
"""Places in an image are computed from these numbers in int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How the kernel of a convolution moves over its image.

    Parameters
    ----------
    strides : tuple of int
        Steps (down, right) between output pixels.
    pads : tuple of int
        Rows and columns of padding (top, left, bottom, right).
    dilations : tuple of int
        Distances (down, right) between the taps of the kernel.
    groups : int
        Conv groups: each sees its own ``C / groups`` channels and makes its own ``M / groups`` outputs.

    Raises
    ------
    KernelError
        If a number is out of its range or missing.
    """

    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        for name, found, length, lowest in (
            ("strides", self.strides, 2, 1),
            ("pads", self.pads, 4, 0),
            ("dilations", self.dilations, 2, 1),
            ("groups", (self.groups,), 1, 1),
        ):
            if len(found) != length or min(found) < lowest or max(found) > _LARGEST:
                raise KernelError(
                    f"{name}: found {list(found)}, wanted {length} whole numbers of {lowest} to {_LARGEST}"
                )

    def output_size(self, height: int, width: int, kernel: tuple[int, int]) -> tuple[int, int]:
        """Return the output's height and width (ONNX Conv: ``floor((size + pads - span) / stride) + 1``).

        Parameters
        ----------
        height, width : int
            Size of the image.
        kernel : tuple of int
            Taps (kh, kw).

        Raises
        ------
        KernelError
            If the dilated kernel does not fit into the padded image.
        """
        top, left, bottom, right = self.pads
        free = (
            height + top + bottom - (kernel[0] - 1) * self.dilations[0] - 1,
            width + left + right - (kernel[1] - 1) * self.dilations[1] - 1,
        )
        if min(free) < 0:
            raise KernelError(
                f"image: found {height} x {width} with pads {list(self.pads)}, wanted at least the kernel's "
                f"{kernel[0]} x {kernel[1]} taps at dilations {list(self.dilations)}"
            )
        return free[0] // self.strides[0] + 1, free[1] // self.strides[1] + 1
