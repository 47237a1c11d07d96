"""Vectors, pointers and loops that write themselves down as LLVM instructions while Numba compiles.

::

    @emitted
    def add(e, n, x, y, out):                      # e: the emitter; n: a count; x, y, out: int16 arrays
        for i in e.range(0, n, e.lanes(i16)):      # one loop in the machine code: the body runs once, here
            total = e.load(x + 2 * i, i16) + e.load(y + 2 * i, i16)
            e.store(out + 2 * i, total)

    @jit
    def run(x, y, out):
        add(TIER, x.size, x, y, out)               # TIER: index of the instruction set, a constant

Arguments arrive as :class:`Pointer` (arrays; where their data begin), :class:`Value` (numbers) or plain
Python integers (constants of the caller, such as ``TIER``). A Python loop or list comprehension unrolls;
``e.range`` loops at run time. What changes from one turn of a loop to the next is a :class:`Variable`.
Lengths, alignment and bounds are the kernel's business: nothing is checked here but the instruction set.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from fgq.errors import KernelError
from fgq.kernels.simd.isa import INSTRUCTION_SETS, InstructionSet, require
from fgq.kernels.simd.values import (
    Pointer,
    Type,
    Value,
    Variable,
    bits_of,
    f32,
    i8,
    i16,
    i32,
    i64,
)

__all__ = [
    "Emitter",
    "Pointer",
    "Type",
    "Value",
    "Variable",
    "emitted",
    "f32",
    "i8",
    "i16",
    "i32",
    "i64",
]

_BYTE = i8.as_pointer()
_VOID = ir.VoidType()

Number = int | float


def emitted(function: Callable[..., None]) -> Any:
    """Make a function that emits code into something that compiled code can call.

    Parameters
    ----------
    function : callable
        Takes an :class:`Emitter` and the arguments of the call, and returns nothing. The caller's first
        argument is the index of the instruction set, a constant.
    """

    def typer(context: Any, tier: Any, *args: Any) -> Any:
        isa = INSTRUCTION_SETS[tier.literal_value]

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            emitter = Emitter(builder, isa)
            given = [
                _argument(emitter, context, type_, value)
                for type_, value in zip(signature.args[1:], values[1:], strict=True)
            ]
            function(emitter, *given)
            return context.get_dummy_value()

        return types.void(tier, *args), generate

    names = list(inspect.signature(function).parameters)[1:]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    typer.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in ("context", "tier", *names)]
    )
    typer.__name__, typer.__doc__ = function.__name__, function.__doc__
    typer.__module__, typer.__qualname__ = function.__module__, function.__qualname__
    return intrinsic(prefer_literal=True)(typer)


def _argument(emitter: Emitter, context: Any, type_: Any, value: Any) -> Any:
    if isinstance(type_, types.Literal):
        return type_.literal_value
    if isinstance(type_, types.Array):
        data = cgutils.create_struct_proxy(type_)(context, emitter.builder, value=value).data
        return Pointer(emitter, emitter.builder.bitcast(data, _BYTE))
    if isinstance(type_, types.Integer):
        whole: Any = type_
        cast = emitter.builder.sext if whole.signed else emitter.builder.zext
        return Value(emitter, value if whole.bitwidth == 64 else cast(value, i64))
    if isinstance(type_, types.Boolean):
        return Value(emitter, emitter.builder.zext(value, i64))
    return Value(emitter, value)


class Emitter:
    """Writes instructions of one instruction set.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
        Where they go.
    isa : InstructionSet
        What they may be.

    Raises
    ------
    KernelError
        If this machine lacks the instruction set; methods raise it if the set lacks the instruction.
    """

    def __init__(self, builder: Any, isa: InstructionSet) -> None:
        require(isa)
        self.builder, self.isa = builder, isa

    # Types and constants

    def lanes(self, element: Type) -> int:
        """Return how many lanes of a type a register holds."""
        return 8 * self.isa.width // bits_of(element)

    def vector(self, element: Type, lanes: int | None = None) -> Type:
        """Return the type of a vector; a whole register unless `lanes` says otherwise."""
        return ir.VectorType(element, lanes or self.lanes(element))

    def constant(self, numbers: Sequence[Number], element: Type) -> Value:
        """Return a vector of the given numbers."""
        return Value(self, ir.Constant(ir.VectorType(element, len(numbers)), list(numbers)))

    def filled(self, number: Any, element: Type, lanes: int | None = None) -> Value:
        """Return a vector with the same number in all lanes, known now or at run time."""
        type_ = self.vector(element, lanes)
        if isinstance(number, int | float):
            return Value(self, ir.Constant(type_, [number] * type_.count))
        number = number.value if isinstance(number, Variable) else number
        undefined = ir.Constant(type_, ir.Undefined)
        first = self.builder.insert_element(undefined, number.ir, i32(0))
        spread = ir.Constant(ir.VectorType(i32, type_.count), [0] * type_.count)
        return Value(self, self.builder.shuffle_vector(first, undefined, spread))

    def zeros(self, element: Type, lanes: int | None = None) -> Value:
        """Return a vector of zeros."""
        return self.filled(0.0 if element == f32 else 0, element, lanes)

    def number(self, given: Any, element: Type = i64) -> Value:
        """Return a Python or run-time integer as a number of a type."""
        if isinstance(given, int | float):
            return Value(self, ir.Constant(element, given))
        given = given.value if isinstance(given, Variable) else given
        number: Value = given if element == f32 else given.signed(element)
        return number

    def like(self, given: Any, model: Value) -> Value:
        """Return a value, variable or Python number as a value of the model's type."""
        if isinstance(given, Variable):
            given = given.value
        if isinstance(given, Value):
            return given
        if model.element == f32:
            given = float(given)
        if isinstance(model.type, ir.VectorType):
            return self.filled(given, model.element, model.lanes)
        return self.number(given, model.element)

    def variable(self, initial: Any, element: Type = i64) -> Variable:
        """Return a variable that starts at a value, pointer or Python integer."""
        return Variable(self, self.number(initial, element) if isinstance(initial, int) else initial)

    # Memory

    def load(self, pointer: Any, element: Type, lanes: int | None = None, *, align: int = 1) -> Value:
        """Load a vector: a whole register, or `lanes` lanes."""
        return Value(self, self._at(pointer, self.vector(element, lanes), align))

    def load_number(self, pointer: Any, element: Type) -> Value:
        """Load one number."""
        return Value(self, self._at(pointer, element, 1))

    def load_spread(self, pointer: Any, element: Type, lanes: int | None = None) -> Value:
        """Load one number into all lanes."""
        return self.filled(self.load_number(pointer, element), element, lanes)

    def store(self, pointer: Any, value: Any, *, align: int = 1) -> None:
        """Store a vector or a number."""
        value = value.value if isinstance(value, Variable) else value
        place = self.builder.bitcast(self._address(pointer), value.type.as_pointer())
        self.builder.store(value.ir, place, align=align)

    def load_first(self, pointer: Any, count: Any, element: Type, lanes: int | None = None) -> Value:
        """Load the first `count` lanes and zeros beyond them, touching no memory behind."""
        type_ = self.vector(element, lanes)
        name = f"llvm.masked.load.{_name(type_)}.p0"
        place = self.builder.bitcast(self._address(pointer), type_.as_pointer())
        mask = self.first(count, type_.count)
        signature = ir.FunctionType(type_, [place.type, i32, mask.type, type_])
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        zeros = self.zeros(element, type_.count)
        return Value(self, self.builder.call(function, [place, i32(1), mask.ir, zeros.ir]))

    def store_first(self, pointer: Any, value: Any, count: Any) -> None:
        """Store the first `count` lanes, touching no memory behind."""
        value = value.value if isinstance(value, Variable) else value
        place = self.builder.bitcast(self._address(pointer), value.type.as_pointer())
        mask = self.first(count, value.lanes)
        signature = ir.FunctionType(_VOID, [value.type, place.type, i32, mask.type])
        name = f"llvm.masked.store.{_name(value.type)}.p0"
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        self.builder.call(function, [value.ir, place, i32(1), mask.ir])

    def first(self, count: Any, lanes: int) -> Value:
        """Return a mask of the first `count` lanes."""
        limit = self.filled(self.number(count, i32), i32, lanes)
        return self.constant(range(lanes), i32) < limit

    def prefetch(self, pointer: Any, *, level: int = 3) -> None:
        """Ask for a cache line; level 3 is the nearest cache, 1 the farthest."""
        signature = ir.FunctionType(_VOID, [_BYTE, i32, i32, i32])
        function = cgutils.get_or_insert_function(self.builder.module, signature, "llvm.prefetch.p0")
        self.builder.call(function, [self._address(pointer), i32(0), i32(level), i32(1)])

    def _address(self, pointer: Any) -> Any:
        return pointer.value.ir if isinstance(pointer, Variable) else pointer.ir

    def _at(self, pointer: Any, type_: Type, align: int) -> Any:
        place = self.builder.bitcast(self._address(pointer), type_.as_pointer())
        return self.builder.load(place, align=align)

    # Control

    def range(self, start: Any, stop: Any, step: int = 1) -> Iterator[Value]:
        """Loop at run time: the body of the Python ``for`` is emitted once, for all turns."""
        function = self.builder.function
        counter = Variable(self, self.number(start))
        end = self.number(stop)
        head = function.append_basic_block("head")
        body = function.append_basic_block("body")
        done = function.append_basic_block("done")
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch((counter.value < end).ir, body, done)
        self.builder.position_at_end(body)
        yield counter.value
        counter += step
        self.builder.branch(head)
        self.builder.position_at_end(done)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Emit the block for where a condition holds."""
        with self.builder.if_then(condition.ir):
            yield

    # Arithmetic

    def choose(self, condition: Value, one: Any, other: Any) -> Value:
        """Take each lane from `one` where the condition holds, else from `other`."""
        one = one.value if isinstance(one, Variable) else one
        other = self.like(other, one)
        return Value(self, self.builder.select(condition.ir, one.ir, other.ir))

    def bits_chosen(self, mask: int, one: Value, other: Value) -> Value:
        """Take the bits of `one` that are set in the lanes' mask, and the others of `other`."""
        if self.isa.width != 64:
            return (one & mask) | (other & ~mask)
        # LLVM turns the same in operators into two instructions
        words = self.filled(mask, one.element, one.lanes).bits_as(i32)
        name = "llvm.x86.avx512.pternlog.d.512"
        args = words, one.bits_as(i32), other.bits_as(i32), self.number(0xCA, i32)
        return self._call(name, words.type, *args).bits_as(one.element)

    def smaller(self, one: Value, other: Any) -> Value:
        """Return the smaller of each two lanes, signed."""
        other = self.like(other, one)
        return self.choose(one < other, one, other)

    def larger(self, one: Value, other: Any) -> Value:
        """Return the larger of each two lanes, signed."""
        other = self.like(other, one)
        return self.choose(one > other, one, other)

    def fused(self, one: Value, other: Value, added: Value) -> Value:
        """Return ``one * other + added`` in floats, rounded once."""
        return self._call(f"llvm.fma.{_name(one.type)}", one.type, one, other, added)

    def whole(self, value: Value) -> Value:
        """Round floats to int32, half to even (vcvtps2dq)."""
        result = self.vector(i32, value.lanes)
        return self._call(f"llvm.lrint.{_name(result)}.{_name(value.type)}", result, value)

    def pair_sums(self, one: Value, other: Value) -> Value:
        """Multiply int16 lanes and add neighbours into int32 lanes (vpmaddwd); exact below 2**31."""
        result = self.vector(i32, one.lanes // 2)
        name = {32: "llvm.x86.avx512.pmaddw.d.512", 16: "llvm.x86.avx2.pmadd.wd", 8: "llvm.x86.sse2.pmadd.wd"}
        self._need(one.lanes == 32, "avx512bw", "vpmaddwd")
        self._need(one.lanes <= 16, "avx2", "vpmaddwd")
        return self._call(name[one.lanes], result, one, other)

    def dot(self, total: Any, unsigned: Value, signed: Value) -> Value:
        """Add to each int32 lane the products of its four uint8 by its four int8 lanes, exactly.

        One instruction (vpdpbusd) where the set has VNNI. Elsewhere the even and the odd bytes are
        multiplied as int16, for which vpmaddwd does not saturate as vpmaddubsw does.
        """
        total = total.value if isinstance(total, Variable) else total
        wide = total.lanes == 16
        name = None
        if self.isa.has("avx512vnni"):
            name = f"llvm.x86.avx512.vpdpbusd.{32 * total.lanes}"
        elif self.isa.has("avxvnni") and not wide:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * total.lanes}"
        if name is not None:
            return self._call(name, total.type, total, unsigned.bits_as(i8), signed.bits_as(i8))
        u, s = unsigned.bits_as(i16), signed.bits_as(i16)
        even = self.pair_sums(u & 255, (s << 8) >> 8)
        odd = self.pair_sums(u.shifted_in_zeros(8), s >> 8)
        result: Value = total + (even + odd)
        return result

    def permuted(self, table: Value, index: Value) -> Value:
        """Look each lane's index up in a table's lanes (vpermw, vpermb); higher index bits are ignored."""
        if table.element == i16 and table.lanes == 32:
            self._need(True, "avx512bw", "vpermw")
            return self._call("llvm.x86.avx512.permvar.hi.512", table.type, table, index)
        if table.element == i8 and table.lanes == 64:
            self._need(True, "avx512vbmi", "vpermb")
            return self._call("llvm.x86.avx512.permvar.qi.512", table.type, table, index)
        raise KernelError(f"permute: found {table.type}, wanted 32 int16 or 64 int8 lanes")

    def permuted_in_16(self, table: Value, index: Value) -> Value:
        """Look each byte's index up in the same 16 bytes of a table (vpshufb); an index above 127 gives 0."""
        names = {
            64: "llvm.x86.avx512.pshuf.b.512",
            32: "llvm.x86.avx2.pshuf.b",
            16: "llvm.x86.ssse3.pshuf.b.128",
        }
        self._need(table.lanes == 64, "avx512bw", "vpshufb")
        return self._call(names[table.lanes], table.type, table, index)

    def packed(self, four: Sequence[Value]) -> Value:
        """Narrow four vectors of int32 lanes, all 0..255, into one of uint8 lanes (vpackssdw, vpackuswb)."""
        wide = four[0].lanes == 16
        self._need(wide, "avx512bw", "vpackuswb")
        self._need(True, "avx2", "vpackuswb")
        family, width = ("avx512", ".512") if wide else ("avx2", "")
        halves = [
            self._call(f"llvm.x86.{family}.packssdw{width}", self.vector(i16), *four[i : i + 2])
            for i in (0, 2)
        ]
        mixed = self._call(f"llvm.x86.{family}.packuswb{width}", self.vector(i8), *halves).bits_as(i32)
        # each of them has packed every 16 bytes by themselves
        parts = mixed.lanes // 4
        return mixed.shuffled([4 * part + vector for vector in range(4) for part in range(parts)]).bits_as(i8)

    # Tiles

    def tile_configure(self, pointer: Any) -> None:
        """Set the shapes of the tile registers from 64 bytes, in each thread and each call anew."""
        self._tile("ldtilecfg", self._pointer(pointer))

    def tile_release(self) -> None:
        """Give the tile registers back."""
        self._tile("tilerelease")

    def tile_zero(self, tile: int) -> None:
        """Fill a tile with zeros."""
        self._tile("tilezero", i8(tile))

    def tile_load(self, tile: int, pointer: Any, stride: Any) -> None:
        """Load the rows of a tile, `stride` bytes apart."""
        self._tile("tileloadd64", i8(tile), self._pointer(pointer), self.number(stride).ir)

    def tile_store(self, tile: int, pointer: Any, stride: Any) -> None:
        """Store the rows of a tile, `stride` bytes apart."""
        self._tile("tilestored64", i8(tile), self._pointer(pointer), self.number(stride).ir)

    def tile_dot(self, total: int, unsigned: int, signed: int) -> None:
        """Add to an int32 tile the product of a uint8 tile and an int8 tile (tdpbusd)."""
        self._tile("tdpbusd", i8(total), i8(unsigned), i8(signed))

    def _pointer(self, pointer: Any) -> Any:
        return self._address(pointer)

    def _tile(self, name: str, *args: Any) -> None:
        self._need(True, "amx-int8", name)
        signature = ir.FunctionType(_VOID, [arg.type for arg in args])
        function = cgutils.get_or_insert_function(self.builder.module, signature, f"llvm.x86.{name}")
        self.builder.call(function, list(args))

    def call(self, name: str, result: Type, *args: Value) -> Value:
        """Call an LLVM intrinsic that has no method here."""
        return self._call(name, result, *args)

    def _call(self, name: str, result: Type, *args: Value) -> Value:
        signature = ir.FunctionType(result, [arg.type for arg in args])
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return Value(self, self.builder.call(function, [arg.ir for arg in args]))

    def _need(self, wanted: bool, feature: str, instruction: str) -> None:
        if wanted and not self.isa.has(feature):
            raise KernelError(
                f"{instruction}: found instruction set {self.isa.name}, wanted one with {feature}"
            )


def _name(type_: Type) -> str:
    if isinstance(type_, ir.VectorType):
        return f"v{type_.count}{_name(type_.element)}"
    return "f32" if type_ == f32 else f"i{type_.width}"
