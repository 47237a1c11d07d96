"""A layer made ready to run: weights checked and brought into the form of a kernel, once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from threading import Lock
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fgq.errors import KernelError
from fgq.kernels.boundary import check, ready
from fgq.kernels.products.dispatch import Kernel, Memory, Problem, Wish, select_kernel
from fgq.kernels.products.driver import Engine, Job, aligned, bind, held, in_large_pages, plan_job
from fgq.kernels.products.epilogue import Epilogue, Sums
from fgq.kernels.products.gather import Geometry
from fgq.kernels.products.weights import Plane, Weight, check_activations, check_weights, zero_point_bias
from fgq.kernels.simd.isa import available
from fgq.kernels.window import Window

_NEAR_BYTES = 1 << 20
"""Weights beyond this do not stay in a second-level cache beside what they are multiplied by."""

_REMEMBERED = 64
"""Shapes of input that a layer remembers."""

_PLAIN, _SUMS = Window(), Sums()

MANY_ROWS = 64
"""Stands for any number of rows beyond a GEMV's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user asks of the kernels.

    Parameters
    ----------
    kernel : Wish
        Which kinds of kernels.
    tier : str or None
        The instruction set, None for the best.
    memory : Memory
        How the weights are held.
    """

    kernel: Wish = Wish.AUTO
    tier: str | None = None
    memory: Memory = Memory.AUTO

    @classmethod
    def read(cls, kernel: str, tier: str | None, memory: str) -> Wishes:
        """Read the wishes from their names.

        Raises
        ------
        KernelError
            If there is no such name.
        """
        if kernel not in list(Wish):
            raise KernelError(f"kernel: found {kernel!r}, wanted one of {', '.join(Wish)}")
        if memory not in list(Memory):
            raise KernelError(f"memory: found {memory!r}, wanted one of {', '.join(Memory)}")
        return cls(kernel=Wish(kernel), tier=tier, memory=Memory(memory))


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A layer in the form of one kernel.

    Parameters
    ----------
    kernel : Kernel
        The kernel.
    memory : Memory
        How it holds the weights.
    content : object
        An :class:`~fgq.kernels.products.driver.Engine`, or what the kernel's own ``run`` takes.
    resident_bytes : int
        Memory that its weights take.
    """

    kernel: Kernel
    memory: Memory
    content: Any
    resident_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """What a call with one shape of input does; `job` is None for kernels that run by themselves."""

    prepared: Prepared
    job: Job | None
    weights: tuple[NDArray[Any], ...]
    image: tuple[int, ...]
    size: tuple[int, int]
    shape: tuple[int, ...]
    scratch: tuple[int, int]


class Layer:
    """A matrix product or convolution on quantized activations, ready to run.

    Calling it gives ``acc[.., m] = sum_k w8[m, k] * (x[.., k] - x_zero) + bias[m]``, or what an epilogue
    makes of it. Several threads may call it at once. A layer may use one kernel for few rows and another for
    many; each is prepared when it is first needed.

    Parameters
    ----------
    weight : Weight
        Codes int8 [M, K], or [M, kh, kw, C / groups] for a convolution, and their scales.
    window : Window or None
        The geometry of a convolution, None for a matrix product.
    x_zero : int
        Zero point of the activations, 0..255.
    bias : ndarray of int32, shape (M,), or None
        Added to the sums.
    activation_bits : int
        8, or 4 where all activations are 0..15; larger ones then give wrong sums.
    wishes : Wishes
        What the user asks for.
    read_again : callable, optional
        Returns the weight once more. With it the layer keeps the forms of its kernels alone, and not `weight`
        beside them.

    Raises
    ------
    KernelError
        If an argument does not fit, or no kernel meets the wishes.
    """

    def __init__(
        self,
        weight: Weight,
        *,
        window: Window | None = None,
        x_zero: int = 0,
        bias: NDArray[np.int32] | None = None,
        activation_bits: int = 8,
        wishes: Wishes = Wishes(),
        read_again: Callable[[], Weight] | None = None,
    ) -> None:
        if activation_bits not in (4, 8):
            raise KernelError(f"activation_bits: found {activation_bits}, wanted 4 or 8")
        if bias is None:
            bias = np.zeros(weight.shape[:1], np.int32)
        check_weights(weight, bias, x_zero, window)
        if x_zero >> activation_bits:
            raise KernelError(f"x_zero: found {x_zero}, wanted a value of {activation_bits}-bit activations")
        self._read_weight = read_again or (lambda: weight)
        self.window, self.x_zero, self.bias = window, x_zero, bias
        self.activation_bits, self.wishes = activation_bits, wishes
        self._shape, self._largest_code = weight.shape, weight.largest_code
        self._folded_bias = zero_point_bias(weight, bias, x_zero)
        self._prepared: dict[Kernel, Prepared] = {}
        self._calls: dict[tuple[tuple[int, ...], int], _Call] = {}
        self._lock = Lock()
        self.kernel(MANY_ROWS)  # an impossible wish is told now

    @property
    def weight(self) -> Weight:
        """The weight, read again where it is not kept."""
        return self._read_weight()

    @property
    def outputs(self) -> int:
        """Output channels, M."""
        return self._shape[0]

    @property
    def inputs(self) -> int:
        """Input channels: K of a matrix product, C of a convolution."""
        return self._shape[-1] * (1 if self.window is None else self.window.groups)

    def kernel(self, rows: int = MANY_ROWS) -> Kernel:
        """Return the kernel that runs a call with so many rows of activations, or output pixels.

        Raises
        ------
        KernelError
            If no kernel meets the wishes.
        """
        problem = Problem(
            largest_code=self._largest_code,
            rows=min(rows, MANY_ROWS),
            depthwise=self.window is not None and self.window.groups > 1 and self._shape[-1] == 1,
        )
        return select_kernel(problem, available(), self.wishes.kernel, self.wishes.tier)

    def prepare(self, rows: int = MANY_ROWS) -> Prepared:
        """Bring the weights into the form of the kernel for so many rows, unless they already are.

        Raises
        ------
        KernelError
            If no kernel meets the wishes.
        """
        kernel = self.kernel(rows)
        with self._lock:
            if kernel not in self._prepared:
                self._prepared[kernel] = self._prepare(kernel)
            return self._prepared[kernel]

    @property
    def resident_bytes(self) -> int:
        """Memory that the weights take in the forms in which they have been needed so far."""
        return sum(prepared.resident_bytes for prepared in self._prepared.values())

    def __call__(
        self,
        x: NDArray[np.uint8],
        *,
        epilogue: Epilogue | None = None,
        residual: NDArray[Any] | None = None,
        threads: int = 1,
    ) -> NDArray[Any]:
        """Run the layer.

        Parameters
        ----------
        x : ndarray of uint8, shape (rows, K) or (B, H, W, C)
            Activations; 4-bit ones are the values 0..15.
        epilogue : Epilogue, optional
            What becomes of the sums; the int32 sums themselves without one.
        residual : ndarray, shape of the result, optional
            What the epilogue adds, of its ``residual_dtype``.
        threads : int
            How many threads to use; the integers are the same for any number.

        Returns
        -------
        ndarray, shape (rows, M) or (B, OH, OW, M)
            Of the epilogue's dtype.

        Raises
        ------
        KernelError
            If an array does not fit.
        """
        epilogue = _SUMS if epilogue is None else epilogue
        call = self._call(x, threads)
        x = ready(x)
        if residual is not None or epilogue.needs_residual:
            residual = ready(_checked(residual, epilogue, call.shape))
        out = aligned(call.shape, epilogue.dtype)
        if out.size:
            self._bind(call, x, out, epilogue, residual, held.borrow(*call.scratch))()
        return out

    def result_shape(self, x: NDArray[np.uint8], threads: int = 1) -> tuple[int, ...]:
        """Return the shape of the result for activations of this shape.

        Raises
        ------
        KernelError
            If the shape does not fit.
        """
        return self._call(x, threads).shape

    def scratch_bytes(self, x: NDArray[np.uint8], threads: int = 1) -> int:
        """Return the bytes of memory that :meth:`bind` needs for activations of this shape."""
        count, size = self._call(x, threads).scratch
        return count * size

    def bind(
        self,
        x: NDArray[np.uint8],
        out: NDArray[Any],
        scratch: NDArray[np.uint8],
        *,
        epilogue: Epilogue,
        residual: NDArray[Any] | None = None,
        threads: int = 1,
    ) -> Callable[[], None]:
        """Return the call for these arrays, to be made any number of times, whatever they then hold.

        Parameters
        ----------
        x, residual, epilogue, threads : as for a call
            The arrays writeable and in C order.
        out : ndarray, of :meth:`result_shape` and the epilogue's dtype
            Written by each call, C order.
        scratch : ndarray of uint8, of :meth:`scratch_bytes`
            Overwritten by each call; begins at a multiple of 64 bytes.

        Raises
        ------
        KernelError
            If an array does not fit.
        """
        call = self._call(x, threads)
        if residual is not None or epilogue.needs_residual:
            _checked(residual, epilogue, call.shape)
        count, size = call.scratch
        check(
            call.prepared.kernel.name, x=(x, x.shape, np.uint8), out=(out, call.shape, epilogue.dtype),
            residual=(residual, call.shape, epilogue.residual_dtype),
            scratch=(scratch[: count * size], (count * size,), np.uint8),
        )  # fmt: skip
        return self._bind(call, x, out, epilogue, residual, scratch[: count * size].reshape(count, size))

    def _bind(
        self,
        call: _Call,
        x: NDArray[np.uint8],
        out: NDArray[Any],
        epilogue: Epilogue,
        residual: NDArray[Any] | None,
        scratch: NDArray[np.uint8],
    ) -> Callable[[], None]:
        if call.job is not None:
            return bind(call.job, call.weights, x, self._folded_bias, epilogue, out, residual, scratch)
        image = (call.image[0], *call.size, self.outputs)
        module = import_module(f"fgq.kernels.products.{call.prepared.kernel.module}")
        bound: Callable[[], None] = module.bind(
            call.prepared.content,
            x.reshape(call.image),
            epilogue,
            None if residual is None else residual.reshape(image),
            out.reshape(image),
            scratch,
        )
        return bound

    def _call(self, x: NDArray[np.uint8], threads: int) -> _Call:
        call = self._calls.get((x.shape, threads))
        if call is None:
            return self._plan(x, threads)
        if x.dtype != np.uint8:
            check_activations(x, 2 if self.window is None else 4, self.inputs)
        return call

    def _plan(self, x: NDArray[np.uint8], threads: int) -> _Call:
        """Find out, once for each shape of input, what a call does."""
        check_activations(x, 2 if self.window is None else 4, self.inputs)
        if threads < 1:
            raise KernelError(f"threads: found {threads}, wanted at least 1")
        if self.window is None:
            taps, window = (1, 1), _PLAIN
            image: tuple[int, ...] = (1, max(len(x), 1), 1, self.inputs)
        else:
            taps, window, image = (self._shape[1], self._shape[2]), self.window, x.shape
        geometry = Geometry.of(image, taps, window, self.x_zero)
        shape = (len(x), self.outputs) if self.window is None else (len(x), *geometry.size, self.outputs)
        prepared = self.prepare(geometry.rows)
        job, weights = None, cast(tuple[NDArray[Any], ...], ())
        if isinstance(prepared.content, Engine):
            weights = prepared.content.weights
            job = plan_job(prepared.content, geometry, self.outputs // window.groups, threads)
            scratch = job.threads, job.scratch_bytes
        else:
            module = import_module(f"fgq.kernels.products.{prepared.kernel.module}")
            scratch = module.scratch_shape(prepared.content, image, threads)
        call = _Call(prepared, job, weights, image, geometry.size, shape, scratch)
        if len(self._calls) >= _REMEMBERED:
            self._calls.clear()
        self._calls[x.shape, threads] = call
        return call

    def _prepare(self, kernel: Kernel) -> Prepared:
        module, weight = import_module(f"fgq.kernels.products.{kernel.module}"), self._read_weight()
        groups, size = 1 if self.window is None else self.window.groups, weight.planes[0].codes.size
        if kernel.whole_layer:
            content = module.prepare(weight, self.bias, self.x_zero, self.window, kernel.isa)
            return Prepared(kernel, Memory.FAST, content, size)
        memory = self._memory(kernel, weight)
        matrices = (weight.ternary() if kernel.multiplication_free else weight).matrices(groups)
        options: dict[str, Any] = {}
        if kernel.compact:
            options["compact"] = memory is Memory.COMPACT
        if kernel.multiplication_free and kernel.isa.width:
            options["activation_bits"] = self.activation_bits
        engine = module.prepare(matrices, kernel.isa, **options)
        engine = replace(engine, weights=tuple(map(in_large_pages, engine.weights)))
        return Prepared(kernel, memory, engine, sum(array.nbytes for array in engine.weights))

    def _memory(self, kernel: Kernel, weight: Weight) -> Memory:
        """Return how a kernel holds the weights.

        Raises
        ------
        KernelError
            If they cannot be packed as the user asks.
        """
        if kernel.multiplication_free:
            return Memory.COMPACT
        possible = kernel.compact and packable(weight)
        if self.wishes.memory is Memory.COMPACT and not possible:
            starts = ", ".join(map(str, _starts(weight)[:4]))
            raise KernelError(
                f"memory: found codes up to {self._largest_code} in groups that begin at {starts}, ..; "
                f"wanted codes up to 7 and multiples of 4 for {Memory.COMPACT.value} weights in "
                f"{kernel.name}; ask for {Memory.FAST.value}"
            )
        if self.wishes.memory is Memory.AUTO:
            # a GEMV waits for its weights, and so does whatever has more than stay in the near caches
            waits = kernel.most_rows is not None or weight.planes[0].codes.size > _NEAR_BYTES
            return Memory.COMPACT if possible and waits else Memory.FAST
        return self.wishes.memory


def packable(weight: Weight) -> bool:
    """Tell whether dot-product kernels can decode a weight as they go."""
    if weight.largest_code > 7 or (_starts(weight) % 4).any():
        return False
    # a plane is decoded to int8 before others are added to it
    return all(int(plane.alpha.max()) * int(np.abs(plane.codes).max()) <= 127 for plane in weight.planes)


def _starts(weight: Weight) -> NDArray[Any]:
    """Return where the groups of weights begin within a reduction, the same for all outputs."""
    first = tuple(Plane(plane.codes[:1], plane.alpha[:1]) for plane in weight.planes)
    starts: NDArray[Any] = Weight(first, weight.group).matrices(1)[0].starts
    return starts


def _checked(residual: NDArray[Any] | None, epilogue: Epilogue, shape: tuple[int, ...]) -> NDArray[Any]:
    dtype = epilogue.residual_dtype
    if residual is None or residual.dtype != dtype or residual.shape != shape:
        found = "none" if residual is None else f"{residual.dtype}{list(residual.shape)}"
        wanted = "none" if dtype is None else f"{np.dtype(dtype)}{list(shape)}"
        raise KernelError(f"residual: found {found}, wanted {wanted}")
    return residual
