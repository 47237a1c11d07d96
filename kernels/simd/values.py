"""What emitted code computes with: numbers, vectors, places in memory, and variables that loops change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba.core import cgutils

from fgq.errors import KernelError

if TYPE_CHECKING:
    from fgq.kernels.simd.emit import Emitter

i1, i8, i16, i32, i64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
f32 = ir.FloatType()

Type = Any
"""An LLVM type; llvmlite declares none for Python's type checkers."""


def bits_of(element: Type) -> int:
    """Return the width of a type."""
    return 32 if element == f32 else int(element.width)


class Value:
    """A number or a vector. Operators take another value, a variable, or a Python number for all lanes.

    ``+ - * & | ^ ~ << >>`` are those of NumPy arrays, modulo the width; ``>>`` copies the sign.
    """

    __slots__ = ("emitter", "ir")

    def __init__(self, emitter: Emitter, value: Any) -> None:
        self.emitter, self.ir = emitter, value

    @property
    def type(self) -> Type:
        """The LLVM type, a vector's or a number's."""
        return self.ir.type

    @property
    def element(self) -> Type:
        """The type of a lane."""
        return self.type.element if isinstance(self.type, ir.VectorType) else self.type

    @property
    def lanes(self) -> int:
        """Number of lanes, 1 for a number."""
        return int(self.type.count) if isinstance(self.type, ir.VectorType) else 1

    def _float(self) -> bool:
        return bool(self.element == f32)

    def _do(self, name: str, other: Any, *, swap: bool = False) -> Value:
        other = self.emitter.like(other, self)
        if other.type != self.type:
            raise KernelError(
                f"{name}: found operands of types {self.type} and {other.type}, wanted one type"
            )
        left, right = (other, self) if swap else (self, other)
        return Value(self.emitter, getattr(self.emitter.builder, name)(left.ir, right.ir))

    def __add__(self, other: Any) -> Value:
        return self._do("fadd" if self._float() else "add", other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Value:
        return self._do("fsub" if self._float() else "sub", other)

    def __rsub__(self, other: Any) -> Value:
        return self._do("fsub" if self._float() else "sub", other, swap=True)

    def __mul__(self, other: Any) -> Value:
        return self._do("fmul" if self._float() else "mul", other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Value:
        return self._do("fdiv", other)

    def __floordiv__(self, other: Any) -> Value:
        return self._do("sdiv", other)

    def __mod__(self, other: Any) -> Value:
        return self._do("srem", other)

    def __and__(self, other: Any) -> Value:
        return self._do("and_", other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Value:
        return self._do("or_", other)

    __ror__ = __or__

    def __xor__(self, other: Any) -> Value:
        return self._do("xor", other)

    __rxor__ = __xor__

    def __invert__(self) -> Value:
        return self ^ -1

    def __neg__(self) -> Value:
        return 0 - self

    def __lshift__(self, other: Any) -> Value:
        return self._do("shl", other)

    def __rshift__(self, other: Any) -> Value:
        return self._do("ashr", other)

    def shifted_in_zeros(self, count: Any) -> Value:
        """Shift right, zeros coming in from the left."""
        return self._do("lshr", count)

    def _compare(self, operator: str, other: Any) -> Value:
        other = self.emitter.like(other, self)
        builder = self.emitter.builder
        compare = builder.fcmp_ordered if self._float() else builder.icmp_signed
        return Value(self.emitter, compare(operator, self.ir, other.ir))

    def __lt__(self, other: Any) -> Value:
        return self._compare("<", other)

    def __gt__(self, other: Any) -> Value:
        return self._compare(">", other)

    def __le__(self, other: Any) -> Value:
        return self._compare("<=", other)

    def __ge__(self, other: Any) -> Value:
        return self._compare(">=", other)

    def equals(self, other: Any) -> Value:
        """Compare; ``==`` is left to Python."""
        return self._compare("==", other)

    def _retyped(self, element: Type) -> Type:
        return ir.VectorType(element, self.lanes) if isinstance(self.type, ir.VectorType) else element

    def signed(self, element: Type) -> Value:
        """Widen or narrow each lane, copying the sign; from or to floats by value (to: truncating)."""
        return self._cast(element, self.emitter.builder.sext, "sitofp", "fptosi")

    def unsigned(self, element: Type) -> Value:
        """Widen or narrow each lane, filling with zeros; from or to floats by value."""
        return self._cast(element, self.emitter.builder.zext, "uitofp", "fptoui")

    def _cast(self, element: Type, widen: Callable[[Any, Any], Any], to_float: str, from_float: str) -> Value:
        builder, wanted = self.emitter.builder, self._retyped(element)
        if wanted == self.type:
            return self
        if element == f32:
            return Value(self.emitter, getattr(builder, to_float)(self.ir, wanted))
        if self._float():
            return Value(self.emitter, getattr(builder, from_float)(self.ir, wanted))
        narrow = element.width < self.element.width
        return Value(self.emitter, (builder.trunc if narrow else widen)(self.ir, wanted))

    def bits_as(self, element: Type) -> Value:
        """Read the same bits as lanes of another type; the lowest come first."""
        bits = bits_of(self.element) * self.lanes
        lanes = bits // bits_of(element)
        wanted = (
            element
            if lanes == 1 and not isinstance(self.type, ir.VectorType)
            else ir.VectorType(element, lanes)
        )
        return Value(self.emitter, self.emitter.builder.bitcast(self.ir, wanted))

    def shuffled(self, lanes: Sequence[int], other: Value | None = None) -> Value:
        """Pick lanes by constant numbers; those of `other` count on from the last of this one."""
        undefined = ir.Constant(self.type, ir.Undefined)
        second = undefined if other is None else other.ir
        mask = ir.Constant(ir.VectorType(i32, len(lanes)), list(lanes))
        return Value(self.emitter, self.emitter.builder.shuffle_vector(self.ir, second, mask))

    def part(self, index: int, count: int) -> Value:
        """Return the `index`-th of the vector's `count` equal parts."""
        size = self.lanes // count
        return self.shuffled(range(index * size, (index + 1) * size))

    def joined(self, other: Value) -> Value:
        """Return a vector of these lanes and then the other's."""
        return self.shuffled(range(self.lanes + other.lanes), other)

    def lane(self, index: Any) -> Value:
        """Return one lane as a number."""
        place = self.emitter.number(index, i32)
        return Value(self.emitter, self.emitter.builder.extract_element(self.ir, place.ir))


class Pointer:
    """A place in memory, counted in bytes."""

    __slots__ = ("emitter", "ir")

    def __init__(self, emitter: Emitter, value: Any) -> None:
        self.emitter, self.ir = emitter, value

    def __add__(self, offset: Any) -> Pointer:
        if isinstance(offset, int) and offset == 0:
            return self
        step = self.emitter.number(offset)
        return Pointer(self.emitter, self.emitter.builder.gep(self.ir, [step.ir]))


class Variable:
    """A value or pointer that loops may change: ``total += x``, ``total.value = x``; used like a value."""

    __slots__ = ("_kind", "_slot", "emitter")

    def __init__(self, emitter: Emitter, initial: Any) -> None:
        self.emitter = emitter
        self._kind = type(initial)
        self._slot = cgutils.alloca_once(emitter.builder, initial.ir.type)
        emitter.builder.store(initial.ir, self._slot)

    @property
    def value(self) -> Any:
        """What it holds now."""
        return self._kind(self.emitter, self.emitter.builder.load(self._slot))

    @value.setter
    def value(self, new: Any) -> None:
        if not isinstance(new, Pointer):
            new = self.emitter.like(new, self.value)
        self.emitter.builder.store(new.ir, self._slot)

    def __iadd__(self, other: Any) -> Variable:
        self.value = self.value + other
        return self

    def __isub__(self, other: Any) -> Variable:
        self.value = self.value - other
        return self

    def __add__(self, other: Any) -> Any:
        return self.value + other

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self.value - other

    def __mul__(self, other: Any) -> Any:
        return self.value * other

    __rmul__ = __mul__
