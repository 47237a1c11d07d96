"""What a conversion did, layer by layer, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fgq.kernels.packing import per_byte
from fgq.qtensor import QuantizedTensor
from fgq.scheme import Codes


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One layer of the model.

    Parameters
    ----------
    name, operator : str
    shape : tuple of int
        The shape of the weight; empty for a layer without constant weights.
    scheme : str
        Such as ``ternary N=64``, ``int8`` or ``float``.
    activations : str
        ``int8``, ``int4``, ``int8-dynamic``, ``int8-dynamic-token`` or ``float``.
    reason : str
        Why the layer is float, or differs from the scheme that was asked for; may be empty.
    multiplications : int or None
        Of one inference of one sample, before conversion, where a length that the model leaves open
        counts as 1; None where the shape of the result is unknown or the layer has no constant weights.
    bits_per_weight : float
        As stored in the file, group and row scales counted.
    signal_to_noise_db : float or None
        Of the quantized against the float weights; None where either is not at hand.
    multiplications_removed : float
        The share of them that additions replace.
    lost_groups : int
        Groups with a nonzero weight whose scale was rounded to 0.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    scheme: str
    activations: str
    reason: str
    multiplications: int | None
    bits_per_weight: float = 32.0
    signal_to_noise_db: float | None = None
    multiplications_removed: float = 0.0
    lost_groups: int = 0

    @property
    def weights(self) -> int:
        """The number of weights."""
        return math.prod(self.shape) if self.shape else 0

    @property
    def is_converted(self) -> bool:
        """Whether the layer's weights are quantized."""
        return self.scheme != "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCheck:
    """How one output of the converted model compares.

    Parameters
    ----------
    name : str
    engines_difference : float
        The largest difference between onnxruntime and fgq, in units of the output's largest magnitude.
    engines_equal : bool
        Whether they are equal, value for value.
    signal_to_noise_db : float
        Of the converted model's against the float model's output.
    """

    name: str
    engines_difference: float
    engines_equal: bool
    signal_to_noise_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """What running the written file showed.

    Parameters
    ----------
    samples : int
        Samples that were run.
    data : str
        ``calibration data`` or ``random data``.
    repeatable : bool
        Whether onnxruntime gave the same values twice.
    outputs : tuple of OutputCheck
    """

    samples: int
    data: str
    repeatable: bool
    outputs: tuple[OutputCheck, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a conversion did.

    Parameters
    ----------
    options : dict
        The options of the conversion, as in `ConversionConfig`.
    layers : tuple of LayerReport
        Every node with weights, in graph order.
    float_bytes, converted_bytes : int
        The size of the model before and after, external data counted; 0 for a dry run.
    minimum_onnxruntime : str
        The oldest version of onnxruntime that runs the file.
    self_check : SelfCheck or None
        None for a dry run, or where no data were at hand that the model could run on.
    warnings : tuple of str
    """

    options: dict[str, Any]
    layers: tuple[LayerReport, ...]
    float_bytes: int
    converted_bytes: int
    minimum_onnxruntime: str
    self_check: SelfCheck | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def weights(self) -> int:
        """The number of weights of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        """The mean over all weights of all layers, float ones included."""
        bits = sum(layer.bits_per_weight * layer.weights for layer in self.layers)
        return bits / max(self.weights, 1)

    @property
    def multiplications_removed(self) -> float | None:
        """The share of all layers' multiplications that additions replace; None where it is unknown."""
        if any(layer.multiplications is None for layer in self.layers if layer.shape):
            return None
        total = sum(layer.multiplications or 0 for layer in self.layers)
        removed = sum((layer.multiplications or 0) * layer.multiplications_removed for layer in self.layers)
        return removed / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values that JSON can hold; an infinite ratio becomes None."""
        result = asdict(self)
        result["totals"] = {
            "weights": self.weights,
            "layers": len(self.layers),
            "converted_layers": sum(layer.is_converted for layer in self.layers),
            "bits_per_weight": self.bits_per_weight,
            "multiplications_removed": self.multiplications_removed,
        }
        plain: dict[str, Any] = _finite(result)
        return plain


def bits_per_weight(tensor: QuantizedTensor, *, packed: bool) -> float:
    """Return the bits of a weight in the file, group and row scales counted.

    Parameters
    ----------
    tensor : QuantizedTensor
    packed : bool
        Whether several codes are written to a byte; otherwise every weight takes 8 bits.
    """
    weights = math.prod(tensor.shape)
    bits = 32 * tensor.row_scale.size
    if packed and tensor.scheme.codes is not Codes.INT8:
        for plane in tensor.planes:
            bits += 8 * -(-plane.codes.size // per_byte(tensor.scheme.codes.largest)) + 8 * plane.alpha.size
    else:
        bits += 8 * weights
    return bits / weights


def removed_share(tensor: QuantizedTensor) -> float:
    """Return the share of a layer's multiplications that additions replace: one remains for each group."""
    if tensor.scheme.codes not in (Codes.TERNARY, Codes.TIED):
        return 0.0
    products = math.prod(tensor.shape) // tensor.rows
    groups = products // tensor.shape[tensor.group_axis] * tensor.groups
    return 1 - groups / products


def multiplications(products: int, output: Sequence[int | None] | None) -> int | None:
    """Return the multiplications of one sample: outputs times the products of each.

    Parameters
    ----------
    products : int
        K, the number of products that one output adds up.
    output : sequence of int or None, or None
        The shape of the layer's result, the batch first; an unknown length counts as 1.
    """
    if output is None:
        return None
    return products * math.prod(size or 1 for size in output[1:])


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
