"""Products with weights: a Conv, MatMul or Gemm and what follows it, up to a residual addition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgq.errors import DataError, FgqError
from fgq.graph.windows import read_window
from fgq.kernels import Plane, Weight, Window
from fgq.kernels.operators.elementwise import Add
from fgq.kernels.products.dispatch import MOST_ADDED, Memory, Wish
from fgq.kernels.products.driver import aligned
from fgq.kernels.products.epilogue import Dequantize, Epilogue, QuantizedAdd, Requantize, Sums
from fgq.kernels.products.layer import Layer, Wishes, packable
from fgq.quantization.tensor import QuantizedTensor
from fgq.runtime.layers import IntegerLayer, find_integer_layers
from fgq.runtime.orders import Order, channels_last
from fgq.runtime.quantizers import Requantization
from fgq.runtime.steps.additions import RealEnd, Residual, real_end, residuals
from fgq.runtime.steps.arithmetic import bind_binary, read_binary
from fgq.runtime.steps.registry import Scope, Turn, finder
from fgq.runtime.steps.step import Array, Call, Orders, Step, broadcast, check_rank

IMAGE = channels_last(4)
"""How a convolution's activations lie."""

Run = Callable[[NDArray[np.uint8], Epilogue], NDArray[Any]]


class ProductStep(Step):
    """An integer layer made ready to run.

    Parameters
    ----------
    layer : IntegerLayer
    wish : Wish
        Which kernels may run it. A layer of 8-bit weights, which none can do without multiplying, takes the
        fastest where that is wished.
    memory : Memory
        How its weights are held; a layer whose weights cannot be packed holds them unpacked.
    follows : Residual or RealEnd, optional
        The additions that follow.

    Raises
    ------
    KernelError
        If no kernel meets the wish for this layer.
    ModelError
        If an attribute of the operator is not understood.
    """

    def __init__(
        self,
        layer: IntegerLayer,
        wish: Wish = Wish.AUTO,
        memory: Memory = Memory.AUTO,
        follows: Residual | RealEnd | None = None,
    ) -> None:
        self.layer = layer
        added = None
        if follows is not None:
            added = follows.other.source if isinstance(follows, Residual) else follows.residual
        self.sources = (layer.source,) if added is None else (layer.source, added)
        self.result = layer.result if follows is None else follows.result
        weight = channels_first(layer.read_weight())
        self._shape = weight.shape
        self._wishes, self._layers = possible(weight, wish, memory), list[Layer]()
        self._transposed = layer.kind == "gemm" and bool(layer.node.attributes.get_int("transA", 0))
        try:
            if layer.kind == "conv":
                self._prepare_convolution(weight)
            else:
                indices = np.ndindex(*self._shape[1:-1])
                self._layers += [self._matrix(weight, index) for index in indices]
        except FgqError as error:
            raise type(error)(f"{layer.name}: {error}") from None
        self._follows = follows
        self._epilogue = _epilogue(layer, self._shape[0], follows)
        self._alone = _epilogue(layer, self._shape[0], follows, alone=True)
        self.dtype = self._epilogue.dtype

    @property
    def name(self) -> str:
        """The operator's name."""
        return self.layer.name

    @property
    def kernel(self) -> str:
        """The name of the kernel that runs the layer on many rows."""
        return self._layers[0].kernel().name

    @property
    def tier(self) -> str:
        """The instruction set of that kernel."""
        return self._layers[0].kernel().isa.name

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights in the form of each kernel that has run so far."""
        return sum(layer.resident_bytes for layer in self._layers)

    @property
    def multiplication_free(self) -> bool:
        """Whether the kernel multiplies once for each group of weights only."""
        return self._layers[0].kernel().multiplication_free

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        order = IMAGE if self.layer.kind == "conv" else None
        return Orders((order,) * len(given), order)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        own = self._own_shape(arrays[0])
        return broadcast(self.name, own, *(array.shape for array in arrays[1:]))

    def _own_shape(self, x: Array) -> tuple[int, ...]:
        """Return the shape of the product, without what is added to it."""
        if self.layer.kind == "conv":
            return self._layer_for(x).result_shape(x)
        return _result_shape(self.layer, x.shape, self._shape, transposed=self._transposed)

    def scratch_bytes(self, arrays: Sequence[Array], threads: int) -> int:
        """See `Step`."""
        rows = self._rows(arrays[0])
        return 0 if rows is None else self._layer_for(arrays[0]).scratch_bytes(rows, threads)

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        own, rows = self._own_shape(arrays[0]), self._rows(arrays[0])
        if any(array.shape != own or rows is None for array in arrays[1:]):
            return self._bind_apart(arrays, own, out, scratch, threads)
        return self._bind_product(arrays, out, scratch, threads, self._epilogue)

    def _bind_product(
        self,
        arrays: Sequence[Array],
        out: Array,
        scratch: NDArray[np.uint8],
        threads: int,
        epilogue: Epilogue,
    ) -> Call:
        x, rows = arrays[0], self._rows(arrays[0])
        if rows is None:

            def run() -> None:
                out[...] = self._general(x, epilogue, threads)

            return run
        layer = self._layer_for(x)
        shape = layer.result_shape(rows)
        return layer.bind(
            rows, out.reshape(shape), scratch, epilogue=epilogue, threads=threads,
            residual=arrays[1].reshape(shape) if len(arrays) > 1 else None,
        )  # fmt: skip

    def _bind_apart(
        self,
        arrays: Sequence[Array],
        own: tuple[int, ...],
        out: Array,
        scratch: NDArray[np.uint8],
        threads: int,
    ) -> Call:
        """Return the call for a product and an addition that broadcasts: one after the other."""
        product = aligned(own, self._alone.dtype)
        multiply = self._bind_product(arrays[:1], product, scratch, threads, self._alone)
        if isinstance(self._follows, Residual):
            follows, made = self._follows, self.layer.requantization
            assert made is not None
            operands = [(product, made.quantizer), (arrays[1], follows.other.quantizer)]
            pair, quantizers = zip(*(operands if follows.first else operands[::-1]), strict=True)
            add = bind_binary(Add, pair, quantizers, out, follows.requantization, threads)
        else:
            add = partial(np.add, product, arrays[1], out=out)

        def run() -> None:
            multiply()
            add()

        return run

    def accumulate(self, source: NDArray[np.uint8], threads: int = 1) -> NDArray[np.int32]:
        """Return the int32 accumulators, output channels on the last axis.

        Parameters
        ----------
        source : ndarray of uint8
            The activations in the operator's own layout.
        threads : int
            How many threads to use.
        """
        if self.layer.kind == "conv":
            image = np.ascontiguousarray(source.transpose(0, 2, 3, 1))
            return self._layer_for(image)(image, threads=threads)
        acc = self._general(source, Sums(), threads)
        return acc.swapaxes(-1, -2) if self.layer.kind == "matmul_left" and source.ndim > 1 else acc

    def _rows(self, x: Array) -> Array | None:
        """Return the activations as the one kernel call of the step takes them, None where it needs more."""
        if self.layer.kind == "conv":
            return x
        if self.layer.kind == "matmul_left" or self._transposed or len(self._layers) > 1 or x.ndim < 2:
            return None
        return x.reshape(-1, x.shape[-1])

    def _matrix(self, weight: Weight, index: tuple[int, ...]) -> Layer:
        return self._layer(
            _slice(weight, index), None, lambda: _slice(channels_first(self.layer.read_weight()), index)
        )

    def _layer(self, weight: Weight, window: Window | None, read_again: Callable[[], Weight]) -> Layer:
        return Layer(
            weight, window=window, x_zero=self.layer.activation.zero_point, bias=self.layer.bias,
            activation_bits=self.layer.activation_bits, wishes=self._wishes, read_again=read_again,
        )  # fmt: skip

    def _convolution(self, weight: Weight, window: Window) -> Layer:
        return self._layer(weight, window, lambda: channels_first(self.layer.read_weight()))

    def _prepare_convolution(self, weight: Weight) -> None:
        node, taps = self.layer.node, self._shape[1:3]
        self._fixed = read_window(node, taps, None)
        # auto_pad changes the padding with the image, and the kernel with neither
        window = self._fixed or read_window(node, taps, taps)
        assert window is not None
        self._by_window: dict[Window, Layer] = {window: self._convolution(weight, window)}
        self._layers.append(self._by_window[window])

    def _layer_for(self, x: Array) -> Layer:
        if self.layer.kind != "conv" or self._fixed is not None:
            return self._layers[0]
        window = read_window(self.layer.node, self._shape[1:3], x.shape[1:3])
        assert window is not None
        if window not in self._by_window:
            weight = channels_first(self.layer.read_weight())
            self._by_window[window] = self._convolution(weight, window)
        return self._by_window[window]

    def _general(self, source: Array, epilogue: Epilogue, threads: int) -> Array:
        """Multiply matrices of any rank, batches of weights and weights on the left, as NumPy does."""
        left = self.layer.kind == "matmul_left"
        if source.ndim == 1:  # a vector is a matrix of one row, which the result drops again
            matrix = source[:, None] if left else source[None]
            product = self._general(matrix, epilogue, threads)
            return product[..., 0] if left else product[..., 0, :]
        rows = source.swapaxes(-1, -2) if left or self._transposed else source
        batch, K = self._shape[1:-1], self._shape[-1]
        if not batch:
            flat = np.ascontiguousarray(rows).reshape(-1, K)
            result = self._layers[0](flat, epilogue=epilogue, threads=threads).reshape(*rows.shape[:-1], -1)
        else:
            shape = np.broadcast_shapes(rows.shape[:-2], batch)
            rows = np.broadcast_to(rows, (*shape, *rows.shape[-2:]))
            which = np.broadcast_to(np.arange(len(self._layers)).reshape(batch), shape)
            result = np.empty((*shape, rows.shape[-2], self._shape[0]), epilogue.dtype)
            for index in np.ndindex(*shape):
                x = np.ascontiguousarray(rows[index])
                result[index] = self._layers[which[index]](x, epilogue=epilogue, threads=threads)
        return result.swapaxes(-1, -2) if left else result


def _result_shape(
    layer: IntegerLayer, found: tuple[int, ...], weight: tuple[int, ...], *, transposed: bool
) -> tuple[int, ...]:
    """Return the shape of a product of activations with a weight of shape [M, .., K].

    Raises
    ------
    DataError
        If the activations do not fit the weight.
    """
    M, batch, K = weight[0], weight[1:-1], weight[-1]
    left, x = layer.kind == "matmul_left", found
    if layer.kind == "gemm":
        check_rank(layer.name, x, 2)
    if transposed:
        x = (*x[:-2], x[-1], x[-2])
    reduced = x[-2] if left and len(x) > 1 else x[-1] if x else 0
    if reduced != K:
        raise DataError(f"{layer.name}: found activations {list(found)}, wanted {K} to multiply and add up")
    if len(x) == 1:
        return (*batch, M)
    lead = broadcast(layer.name, x[:-2], batch)
    return (*lead, M, x[-1]) if left else (*lead, x[-2], M)


def _epilogue(
    layer: IntegerLayer, outputs: int, follows: Residual | RealEnd | None, *, alone: bool = False
) -> Epilogue:
    """Return what becomes of a layer's sums, the residual that follows left out if it is to be `alone`."""
    factor = np.float32(layer.activation.scale) * layer.row_scale
    made = layer.requantization
    if made is None:
        shift = follows.shift if isinstance(follows, RealEnd) else None
        if shift is not None:
            shift = np.array(np.broadcast_to(shift, (outputs,)))
        return Dequantize(np.asarray(factor, np.float32), shift=shift)
    return Requantize(
        np.asarray(factor / np.float32(made.quantizer.scale), np.float32),
        made.quantizer.zero_point,
        made.lowest,
        made.highest,
        _addition(made, follows) if isinstance(follows, Residual) and not alone else None,
    )


def _addition(own: Requantization, residual: Residual) -> QuantizedAdd:
    other, total = residual.other.quantizer, residual.requantization
    return QuantizedAdd(
        scale=own.quantizer.scale,
        zero_point=own.quantizer.zero_point,
        residual_scale=other.scale,
        residual_zero_point=other.zero_point,
        sum_scale=total.quantizer.scale,
        sum_zero_point=total.quantizer.zero_point,
        lowest=total.lowest,
        highest=total.highest,
        own_first=residual.first,
    )


def possible(weight: Weight, wish: Wish, memory: Memory) -> Wishes:
    """Return what can be had for a layer: its weights may allow no additions, or no packing."""
    if wish is Wish.MULTIPLICATION_FREE and weight.largest_code > MOST_ADDED:
        wish = Wish.AUTO
    if memory is Memory.COMPACT and not packable(weight):
        memory = Memory.FAST
    return Wishes(kernel=wish, memory=memory)


def channels_first(weight: QuantizedTensor) -> Weight:
    """Return the weight with the output channel first and the group axis last."""
    axes = (weight.channel_axis, weight.group_axis), (0, -1)
    planes = []
    for plane in weight.planes:
        full = list(weight.shape)
        full[weight.group_axis] = weight.groups
        alpha = np.broadcast_to(plane.alpha, full)
        codes = np.ascontiguousarray(np.moveaxis(plane.codes, *axes))
        planes.append(Plane(codes, np.ascontiguousarray(np.moveaxis(alpha, *axes))))
    return Weight(tuple(planes), weight.group)


def _slice(weight: Weight, index: tuple[int, ...]) -> Weight:
    """Return one matrix [M, K] of a batch [M, .., K]."""
    at: tuple[slice | int, ...] = (slice(None), *index)
    planes = [
        Plane(np.ascontiguousarray(plane.codes[at]), np.ascontiguousarray(plane.alpha[at]))
        for plane in weight.planes
    ]
    return Weight(tuple(planes), weight.group)


@finder(Turn.PRODUCTS)
def find_products(scope: Scope) -> Iterator[Step]:
    """Find the integer layers of a graph, with the additions that each can do in its epilogue."""
    layers = {layer.result: layer for layer in find_integer_layers(scope.graph)}
    additions = [step for node in scope.graph if (step := read_binary(node)) is not None]
    absorbed = residuals(additions, layers)
    for result, layer in layers.items():
        follows = absorbed.get(result) or _real_end(layer)
        yield ProductStep(layer, scope.options.wish, scope.options.memory, follows)


def _real_end(layer: IntegerLayer) -> RealEnd | None:
    if layer.requantization is not None or layer.kind != "matmul" or layer.bias is not None:
        return None
    return real_end(layer.result, layer.row_scale)
