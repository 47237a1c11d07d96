"""What a model says about its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fgq.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What a model says about one of its inputs.

    Parameters
    ----------
    name : str
        The input's name.
    dtype : numpy.dtype
        Its element type.
    shape : tuple of int, str or None
        One entry an axis, the batch first where there is one; a str or None is an axis of any length.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"

    @property
    def fixed_batch(self) -> int | None:
        """The length of the batch axis, or None where it may have any."""
        return self.shape[0] if self.shape and isinstance(self.shape[0], int) else None


def input_specs(model: ir.Model) -> tuple[InputSpec, ...]:
    """Return what a model says about the inputs that must be fed.

    Parameters
    ----------
    model : onnx_ir.Model
        Inputs that have an initializer of the same name have a default and are left out.

    Returns
    -------
    tuple of InputSpec

    Raises
    ------
    ModelError
        If an input is no tensor or the model states no type or shape for it.
    """
    specs = []
    for value in model.graph.inputs:
        if value.name in model.graph.initializers:
            continue
        if value.dtype is None or value.shape is None:
            raise ModelError(f"model input {value.name!r}: found no tensor type and shape, wanted both")
        axes = tuple(axis if isinstance(axis, int) else axis.value for axis in value.shape)
        specs.append(InputSpec(name=str(value.name), dtype=value.dtype.numpy(), shape=axes))
    return tuple(specs)


def has_open_batch(inputs: Sequence[InputSpec]) -> bool:
    """Tell whether a model's inputs have a first axis of any length in common, along which feeds can be cut.

    Inputs without axes do not count. A first axis whose name later axes have too is no batch axis.

    Parameters
    ----------
    inputs : sequence of InputSpec
    """
    return all(spec.fixed_batch is None for spec in inputs) and not axes_elsewhere(inputs)


def axes_elsewhere(inputs: Sequence[InputSpec]) -> set[str]:
    """Return the names of first axes that later axes have, too."""
    first = {spec.shape[0] for spec in inputs if spec.shape}
    return {axis for spec in inputs for axis in spec.shape[1:] if isinstance(axis, str) and axis in first}
