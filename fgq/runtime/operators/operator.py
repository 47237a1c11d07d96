"""How a Python function becomes an operator of ONNX.

A function takes the operator's inputs by position, ``None`` for an optional one that is left out, and its
attributes by keyword, under the names that ONNX gives them. Where versions of the operator differ it also
takes ``opset``, and where the number of results depends on the call, ``outputs``:

    def flatten(x: Array, *, axis: int = 1) -> Array: ...

Attributes are Python values: int, float, str, an ndarray for a tensor, a sequence for lists.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fgq.errors import DataError, FgqError, ModelError

Array = NDArray[Any]

OLDEST_OPSET = 7
"""Before it, the arithmetic operators broadcast by an attribute of theirs."""

_CONTEXT = ("opset", "outputs")


class Operator:
    """An ONNX operator that is computed with NumPy.

    Parameters
    ----------
    op_type : str
        The operator's name, for messages.
    function : callable
        What computes it.
    """

    def __init__(self, op_type: str, function: Callable[..., Any]) -> None:
        self.op_type, self._function = op_type, function
        parameters = inspect.signature(function).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self._least = sum(p.default is p.empty for p in positional)
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self._most = None if variadic else len(positional)
        self._wanted = f"at least {self._least}" if variadic else f"{self._least} to {self._most}"
        if self._least == self._most:
            self._wanted = str(self._most)
        keywords = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        self._context = tuple(name for name in _CONTEXT if name in keywords)
        self._attributes = {name for name in keywords if name not in _CONTEXT}
        self._required = {
            name for name in self._attributes if keywords[name].default is inspect.Parameter.empty
        }

    def __repr__(self) -> str:
        return f"Operator({self.op_type!r})"

    def __call__(
        self,
        inputs: Sequence[Array | None],
        attributes: Mapping[str, Any],
        opset: int,
        outputs: int = 1,
    ) -> tuple[Array, ...]:
        """Compute the operator.

        Parameters
        ----------
        inputs : sequence of ndarray or None
            None for an optional input that is left out.
        attributes : mapping of str to object
            Those that the node has (:func:`attributes_of`).
        opset : int
            The version of the operator's domain that the model imports.
        outputs : int
            How many results are wanted.

        Returns
        -------
        tuple of ndarray
            At least `outputs` of them.

        Raises
        ------
        ModelError
            If the node is not one that the operator knows: its opset, attributes or number of inputs.
        DataError
            If the values do not fit each other.
        """
        if opset < OLDEST_OPSET:
            raise ModelError(f"{self.op_type}: found opset {opset}, wanted at least {OLDEST_OPSET}")
        if not attributes.keys() <= self._attributes or not self._required <= attributes.keys():
            found, wanted = (", ".join(sorted(some)) or "none" for some in (attributes, self._attributes))
            raise ModelError(f"{self.op_type}: found the attributes {found}, wanted {wanted}")
        if any(value is None for value in inputs[: self._least]) or not (
            self._least <= len(inputs) and (self._most is None or len(inputs) <= self._most)
        ):
            count = sum(value is not None for value in inputs)
            raise ModelError(f"{self.op_type}: found {count} inputs, wanted {self._wanted}")
        context = {"opset": opset, "outputs": outputs}
        known = {name: context[name] for name in self._context}
        try:
            with np.errstate(all="ignore"):  # infinities and wrapped integers are results
                results = self._function(*inputs, **attributes, **known)
        except FgqError as error:
            raise type(error)(f"{self.op_type}: {error}") from None
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, MemoryError) as error:
            found = ", ".join("none" if x is None else _describe(x) for x in inputs)
            raise DataError(f"{self.op_type}: found {found}, which do not fit ({error})") from None
        several = results if isinstance(results, tuple) else (results,)
        if len(several) < outputs:
            raise ModelError(f"{self.op_type}: found {outputs} outputs, wanted at most {len(several)}")
        # a ufunc returns a scalar for arrays of no dimensions
        return tuple(np.asarray(x) if isinstance(x, np.generic) else x for x in several)


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """Return a node's attributes as :class:`Operator` takes them.

    Parameters
    ----------
    node : onnx_ir.Node

    Raises
    ------
    ModelError
        If an attribute is that of a function around the node.
    """
    for attribute in node.attributes.values():
        if attribute.is_ref():
            raise ModelError(
                f"{node.name or node.op_type}: found a reference for the attribute {attribute.name}"
            )
    return {
        attribute.name: attribute.value.numpy()
        if attribute.type == ir.AttributeType.TENSOR
        else attribute.value
        for attribute in node.attributes.values()
    }


def _describe(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
