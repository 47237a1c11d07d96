"""What a conversion did, layer by layer, as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from fgq.format.packing import per_byte
from fgq.quantization.scheme import WeightScheme
from fgq.quantization.statistics import Estimate
from fgq.quantization.tensor import QuantizedTensor


class LayerCheck(NamedTuple):
    """How near a layer's output is to the float network's, on all calibration data.

    Parameters
    ----------
    error : float
        The squared distance over the squared float output, with what is written.
    nearest_error : float
        The same with what the recipe ``fgq`` would have written, on the same inputs.
    reverted : int
        Output channels that are as ``fgq`` has them, since that is nearer.
    """

    error: float
    nearest_error: float
    reverted: int

    @classmethod
    def from_array(cls, values: NDArray[Any]) -> LayerCheck:
        """Return the check of three numbers, as an array of its fields holds them."""
        error, nearest_error, reverted = map(float, values)
        return cls(error, nearest_error, int(reverted))


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
        ``int8``, ``int4``, ``2 x int4``, ``int8-dynamic``, ``int8-dynamic-token`` or ``float``.
    reason : str
        Why the layer is float, or differs from the scheme that was asked for; may be empty.
    activation_bits : int or None
        Of one input value: 8, for two 4-bit tensors too, or 4; None where it stays float.
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
    output_error : float or None
        The squared distance of its output from the float network's, over that one's square, on all
        calibration data: with the weights and the bias that are written, on what the layer then reads.
        None where data have not chosen its weights.
    nearest_output_error : float or None
        The same with what the recipe ``fgq`` would have written; never less.
    reverted_outputs : int
        Its output channels that are as the recipe ``fgq`` has them, as that is nearer.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    scheme: str
    activations: str
    reason: str
    multiplications: int | None
    activation_bits: int | None = None
    bits_per_weight: float = 32.0
    signal_to_noise_db: float | None = None
    multiplications_removed: float = 0.0
    lost_groups: int = 0
    output_error: float | None = None
    nearest_output_error: float | None = None
    reverted_outputs: int = 0

    @property
    def weights(self) -> int:
        """The number of weights."""
        return math.prod(self.shape) if self.shape else 0

    @property
    def is_converted(self) -> bool:
        """Whether the layer's weights are quantized."""
        return self.scheme != "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerReport:
    """One quantizer of activations, on the calibration data.

    Parameters
    ----------
    tensor : str
    bits : int
        8, or 4.
    scale : float
    zero_point : int
    signal_to_noise_db : float
        Of the values against what clipping and rounding take from them.
    clipped_share : float
        The share of values more than half a step outside its range.
    """

    tensor: str
    bits: int
    scale: float
    zero_point: int
    signal_to_noise_db: float
    clipped_share: float


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
    by_default : float
        The largest difference that onnxruntime's default options make on this processor, relative to the
        largest value of its output; see `fgq.graph.ort`.
    outputs : tuple of OutputCheck
    """

    samples: int
    data: str
    repeatable: bool
    by_default: float = 0.0
    outputs: tuple[OutputCheck, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutCheck:
    """What the converted model lost on samples that it was not calibrated on, in onnxruntime.

    Parameters
    ----------
    measure : str
        ``top-1`` of a classifier against labels, ``top-1 agreement`` with the float model without them, and
        of other networks ``relative squared error`` of the outputs.
    samples : int
    loss : Estimate
        In points: the float model's top-1 less the converted one's, the share of samples that get another
        class, or the relative error, each times 100; with its 95 % interval, for top-1 that of the paired
        bootstrap.
    """

    measure: str
    samples: int
    loss: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a conversion did.

    Parameters
    ----------
    options : dict
        The options of the conversion, as in `ConversionConfig`.
    layers : tuple of LayerReport
        Every node with weights, in graph order.
    quantizers : tuple of QuantizerReport
        Those of activations, in graph order; empty where nothing was calibrated.
    float_bytes, converted_bytes : int
        The size of the model before and after, external data counted; 0 for a dry run.
    minimum_onnxruntime : str
        The oldest version of onnxruntime that runs the file.
    self_check : SelfCheck or None
        None for a dry run, or where no data were at hand that the model could run on.
    warnings : tuple of str
    held_out : HeldOutCheck or None
        None where no samples were held out.
    plan : dict or None
        The plan of the layers (`fgq.plan.Plan.to_dict`), if there was one.
    """

    options: dict[str, Any]
    layers: tuple[LayerReport, ...]
    float_bytes: int
    converted_bytes: int
    minimum_onnxruntime: str
    quantizers: tuple[QuantizerReport, ...] = ()
    self_check: SelfCheck | None = None
    warnings: tuple[str, ...] = field(default=())
    held_out: HeldOutCheck | None = None
    plan: dict[str, Any] | None = None

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
    def activation_bits(self) -> float | None:
        """The mean over the quantized inputs of layers, each counted by its layer's multiplications.

        None where no input is quantized or a number of multiplications is unknown.
        """
        counts = [(layer.activation_bits, layer.multiplications) for layer in self.layers]
        known = [(bits, count) for bits, count in counts if bits is not None]
        total = sum(count or 0 for _, count in known)
        if not total or any(count is None for _, count in known):
            return None
        return sum(bits * (count or 0) for bits, count in known) / total

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
            "activation_bits": self.activation_bits,
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
    if packed and tensor.scheme.codes.spec.packed:
        for plane in tensor.planes:
            bits += 8 * -(-plane.codes.size // per_byte(tensor.scheme.codes.largest)) + 8 * plane.alpha.size
    else:
        bits += 8 * weights
    return bits / weights


def removed_share(tensor: QuantizedTensor) -> float:
    """Return the share of a layer's multiplications that additions replace: one remains for each group."""
    return removed_by(tensor.scheme, tensor.shape[tensor.group_axis])


def removed_by(scheme: WeightScheme, length: int) -> float:
    """Return the share of multiplications that a scheme replaces in a layer of `length` input channels."""
    if not scheme.codes.spec.planes:
        return 0.0
    return 1 - -(-length // scheme.group_length(length)) / length


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
