"""The command `fgq inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fgq.cli.options import Json, ModelPath, takes_conversion_options
from fgq.config import ConversionConfig

if TYPE_CHECKING:
    from fgq.report import Report


@takes_conversion_options("group_size", "include", "exclude")
def inspect(model: ModelPath, *, json: Json = False, **options: Any) -> None:
    """List the layers of a converted model, or what would become of a float model's layers, and why.

    Example: `fgq inspect resnet50.onnx`
    """
    from fgq.converters import survey

    show_survey(survey.inspect(model, ConversionConfig(**options)), json=json)


def show_survey(result: Report, *, json: bool) -> None:
    """Print the layers of a model, and how many of them are or would be converted.

    Parameters
    ----------
    result : Report
    json : bool
        Print JSON alone.
    """
    from fgq.cli import display

    if json:
        display.print_json(result.to_dict())
        return
    converted = result.converted_bytes > 0
    display.print_layers(result.layers, converted=converted)
    count = sum(layer.is_converted for layer in result.layers)
    verb = "are quantized" if converted else "would be converted"
    display.out.print(f"\n{count} of {len(result.layers)} layers with weights {verb}")
