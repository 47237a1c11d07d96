"""Which kernel does which layer: a table of all kernels, and one function that picks from it.

A layer is prepared once and run many times::

    kernel = select_kernel(Problem(op="conv2d", ternary=True, depthwise=False), Wish.AUTO)
    prepared = kernel.prepare(codes, alpha, group, bias, x_zero, window)
    acc = kernel.run(prepared, x)

Picking a kernel loads no compiled code; preparing the first layer does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels.weights import (
    check_activations,
    check_conv2d_weights,
    check_matmul_weights,
    check_ternary,
)
from fgq.kernels.window import Window

Op = Literal["matmul", "conv2d"]


class Wish(StrEnum):
    """What the user asks of the kernels."""

    AUTO = "auto"
    """The fastest."""
    REFERENCE = "reference"
    """The plain NumPy ones, which judge all others."""
    MULTIPLICATION_FREE = "multiplication-free"
    """Only such as multiply no weight by an activation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What decides which kernels can do a layer.

    Parameters
    ----------
    op : "matmul" or "conv2d"
        The operation.
    ternary : bool
        Whether all codes are -1, 0 or 1.
    depthwise : bool
        Whether a convolution has one input channel per filter, in several conv groups.
    """

    op: Op
    ternary: bool
    depthwise: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One way to do one operation.

    Parameters
    ----------
    name : str
        Unique; op, weights, instruction set.
    op : "matmul" or "conv2d"
        The operation.
    module : str
        The module with functions ``prepare_<op>`` and ``run_<op>``.
    ternary_only, depthwise_only : bool
        Whether it can do no other layers.
    multiplication_free : bool
        Whether it adds and subtracts activations and multiplies once per group of weights only.
    """

    name: str
    op: Op
    module: str
    ternary_only: bool = False
    depthwise_only: bool = False
    multiplication_free: bool = False

    def supports(self, problem: Problem) -> bool:
        """Return whether this kernel can do such a layer."""
        return (
            self.op == problem.op
            and (problem.ternary or not self.ternary_only)
            and (problem.depthwise or not self.depthwise_only)
        )

    def prepare(
        self,
        codes: NDArray[np.int8],
        alpha: NDArray[np.uint8],
        group: NDArray[np.int32],
        bias: NDArray[np.int32],
        x_zero: int,
        window: Window | None = None,
    ) -> Any:
        """Check a layer's weights and bring them into the form that this kernel runs on.

        Parameters
        ----------
        codes : ndarray of int8, shape (M, K) or (M, kh, kw, C / groups)
            Small integers; beyond -1..1 only for kernels that are not ternary only.
        alpha : ndarray of uint8, shape (M, G) or (M, kh, kw, G)
            Group scales.
        group : ndarray of int32, shape (K,) or (C / groups,)
            The group of each position on the last axis of `codes`: 0, .., 0, 1, .., G - 1.
        bias : ndarray of int32, shape (M,)
            Added to the sums.
        x_zero : int
            Zero point of the activations, 0..255.
        window : Window, optional
            The geometry of a convolution, and only of a convolution.

        Returns
        -------
        object
            For :meth:`run`. It is never changed, so several threads may run it at once.

        Raises
        ------
        KernelError
            Naming the first argument that does not fit, what was found and what was wanted.
        """
        layer = codes, alpha, group, bias, x_zero
        if (window is None) != (self.op == "matmul"):
            raise KernelError(f"window: found {window}, wanted one for a conv2d and none for a matmul")
        if window is None:
            check_matmul_weights(*layer)
        else:
            check_conv2d_weights(*layer, window.groups)
        if self.ternary_only:
            check_ternary(codes)
        if self.depthwise_only and codes.shape[-1] != 1:
            raise KernelError(
                f"codes: found {codes.shape[-1]} input channels per filter, wanted 1 for {self.name}"
            )
        prepare = getattr(import_module(self.module), f"prepare_{self.op}")
        return prepare(*layer) if window is None else prepare(*layer, window)

    def run(self, prepared: Any, x: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return the sums of a prepared layer.

        Parameters
        ----------
        prepared : object
            What this kernel's :meth:`prepare` returned.
        x : ndarray of uint8, shape (rows, K) or (B, H, W, C)
            Activations; 4-bit ones are the values 0..15.

        Returns
        -------
        ndarray of int32, shape (rows, M) or (B, OH, OW, M)
            Sums.

        Raises
        ------
        KernelError
            If the activations do not fit the weights.
        """
        check_activations(x, 2 if self.op == "matmul" else 4, prepared.channels)
        run = getattr(import_module(self.module), f"run_{self.op}")
        acc: NDArray[np.int32] = run(prepared, np.require(x, requirements=["C", "W"]))
        return acc


def build_table(kernels: Iterable[Kernel]) -> dict[str, Kernel]:
    """Return the kernels by name.

    Raises
    ------
    KernelError
        If two have the same name.
    """
    table: dict[str, Kernel] = {}
    for kernel in kernels:
        if kernel.name in table:
            raise KernelError(f"kernel {kernel.name}: found twice, wanted one of that name")
        table[kernel.name] = kernel
    return table


KERNELS = build_table(
    [
        # The first kernel that can do a layer and meets the wish is taken.
        # Depthwise layers come first: a reduction of a few taps has nothing to save by adding in groups.
        Kernel(
            name="conv2d_depthwise_int8_portable",
            op="conv2d",
            module="fgq.kernels.conv2d_depthwise_int8_portable",
            depthwise_only=True,
        ),
        # Ternary layers by addition: twice as fast as multiplying at N=64, about as fast at N=4.
        Kernel(
            name="matmul_ternary_portable",
            op="matmul",
            module="fgq.kernels.matmul_ternary_portable",
            ternary_only=True,
            multiplication_free=True,
        ),
        Kernel(
            name="conv2d_ternary_portable",
            op="conv2d",
            module="fgq.kernels.conv2d_ternary_portable",
            ternary_only=True,
            multiplication_free=True,
        ),
        # These can do any layer on any processor.
        Kernel(name="matmul_int8_portable", op="matmul", module="fgq.kernels.matmul_int8_portable"),
        Kernel(name="conv2d_int8_portable", op="conv2d", module="fgq.kernels.conv2d_int8_portable"),
        # Taken only where it is asked for.
        Kernel(name="matmul_reference", op="matmul", module="fgq.kernels.reference"),
        Kernel(name="conv2d_reference", op="conv2d", module="fgq.kernels.reference"),
    ]
)
"""All kernels by name, in order of preference."""


def select_kernel(problem: Problem, wish: Wish) -> Kernel:
    """Return the preferred kernel for a layer; the same arguments give the same kernel.

    Parameters
    ----------
    problem : Problem
        The layer.
    wish : Wish
        What the user asks for.

    Raises
    ------
    KernelError
        If no kernel meets the wish: 8-bit weights cannot be added without multiplying.
    """
    if wish is Wish.REFERENCE:
        return KERNELS[f"{problem.op}_reference"]
    for kernel in KERNELS.values():
        if kernel.supports(problem) and (kernel.multiplication_free or wish is Wish.AUTO):
            return kernel
    raise KernelError(
        f"kernel: found the wish {wish.value} for a {problem.op} with 8-bit weights, wanted ternary weights; "
        f"ask for {Wish.AUTO.value} or quantize the layer to ternary"
    )
