"""Products whose activations are quantized at run time: one step quantizes the rows, others multiply them.

What the first makes is no value of the graph: scales, zero points and activations lie in one array
(`fgq.kernels.operators.dynamic.Rows`), as wide along the last axis as the activations and a few bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import FgqError
from fgq.format.dynamic_functions import DynamicProduct, find_dynamic_products
from fgq.kernels import Weight
from fgq.kernels.operators.dynamic import NUMBERS_BYTES, Rows, bind_multiply, bind_quantize
from fgq.kernels.products.dispatch import Memory, Wish
from fgq.kernels.products.driver import aligned
from fgq.kernels.products.layer import Layer
from fgq.quantization.scheme import Ranges
from fgq.runtime.orders import Order
from fgq.runtime.steps.additions import RealEnd, real_end
from fgq.runtime.steps.products import channels_first, possible
from fgq.runtime.steps.registry import Scope, Turn, finder
from fgq.runtime.steps.step import Array, Call, Orders, Step, broadcast


class QuantizeRowsStep(Step):
    """The quantization of activations that products read.

    Parameters
    ----------
    product : DynamicProduct
        One of them.
    """

    dtype = np.uint8

    def __init__(self, product: DynamicProduct) -> None:
        self._by_row = product.ranges is Ranges.TOKEN
        self.sources = (product.source,)
        self.result = ir.Value(name=f"{product.source.name}_rows", type=ir.TensorType(ir.DataType.UINT8))

    @property
    def name(self) -> str:
        """The name of the activations."""
        return str(self.sources[0].name)

    @property
    def kernel(self) -> str:
        """See `Step`."""
        return "quantize_rows" if self._by_row else "quantize_dynamic"

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        return Orders((None,), None)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        *lead, width = arrays[0].shape
        return (*lead, width + NUMBERS_BYTES)

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        return bind_quantize(arrays[0], out, by_row=self._by_row, threads=threads)


class DynamicProductStep(Step):
    """A product with quantized rows, and the additions of real values that follow.

    Parameters
    ----------
    product : DynamicProduct
    rows : onnx_ir.Value
        What the `QuantizeRowsStep` makes.
    wish : Wish
        Which kernels may run it.
    memory : Memory
        How its weights are held.
    follows : RealEnd, optional

    Raises
    ------
    KernelError
        If no kernel meets the wish.
    """

    dtype = np.float32

    def __init__(
        self,
        product: DynamicProduct,
        rows: ir.Value,
        wish: Wish = Wish.AUTO,
        memory: Memory = Memory.AUTO,
        follows: RealEnd | None = None,
    ) -> None:
        self._product = product
        residual = None if follows is None else follows.residual
        self.sources = (rows,) if residual is None else (rows, residual)
        self.result = product.result if follows is None else follows.result
        tensor = product.read_weight()
        weight, outputs = channels_first(tensor), tensor.shape[1]
        try:
            self._layer = Layer(weight, wishes=possible(weight, wish, memory), read_again=self._weight)
        except FgqError as error:
            raise type(error)(f"{product.name}: {error}") from None
        self._column_sums = tensor.int8().sum(axis=0, dtype=np.int32)
        shift = None if follows is None else follows.shift
        self._row_scale, self._shift = (
            np.array(np.broadcast_to(array, outputs), np.float32)
            for array in (product.row_scale, np.float32(0) if shift is None else shift)
        )

    def _weight(self) -> Weight:
        return channels_first(self._product.read_weight())

    @property
    def name(self) -> str:
        """The product's name."""
        return self._product.name

    @property
    def kernel(self) -> str:
        """The name of the kernel that runs the product on many rows."""
        return self._layer.kernel().name

    @property
    def tier(self) -> str:
        """The instruction set of that kernel."""
        return self._layer.kernel().isa.name

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights in the form of each kernel that has run so far."""
        return self._layer.resident_bytes

    def orders(self, given: Sequence[Order]) -> Orders:
        """See `Step`."""
        return Orders((None,) * len(given), None)

    def shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """See `Step`."""
        return broadcast(self.name, self._own_shape(arrays), *(array.shape for array in arrays[1:]))

    def _own_shape(self, arrays: Sequence[Array]) -> tuple[int, ...]:
        """Return the shape of the product, without what is added to it."""
        return (*arrays[0].shape[:-1], self._layer.outputs)

    def scratch_bytes(self, arrays: Sequence[Array], threads: int) -> int:
        """See `Step`."""
        return self._layer.scratch_bytes(Rows.within(arrays[0]).activations, threads)

    def bind(self, arrays: Sequence[Array], out: Array, scratch: NDArray[np.uint8], threads: int) -> Call:
        """See `Step`."""
        own = self._own_shape(arrays)
        if any(array.shape != own for array in arrays[1:]):
            product = aligned(own, np.float32)
            multiply = self.bind(arrays[:1], product, scratch, threads)

            def run() -> None:
                multiply()
                np.add(product, arrays[1], out=out)

            return run
        flat = (-1, self._layer.outputs)
        return bind_multiply(
            self._layer, self._column_sums, self._row_scale, self._shift, Rows.within(arrays[0]),
            arrays[1].reshape(flat) if len(arrays) > 1 else None, out.reshape(flat), scratch, threads,
        )  # fmt: skip


@finder(Turn.PRODUCTS)
def find_dynamic_steps(scope: Scope) -> Iterator[Step]:
    """Find the products whose activations are quantized at run time, and one quantization for each tensor."""
    products = find_dynamic_products(scope.graph)
    quantized = {product.quantize: QuantizeRowsStep(product) for product in products}
    yield from quantized.values()
    for product in products:
        follows = real_end(product.result, product.row_scale)
        rows = quantized[product.quantize].result
        yield DynamicProductStep(product, rows, scope.options.wish, scope.options.memory, follows)
