"""PyTorch module to ONNX model, through either of PyTorch's two exporters.

Importing this module does not import torch; calling it does.
"""

import os
from collections.abc import Mapping
from importlib import import_module
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import onnx

from fgq.errors import ConfigError, OutputError

if TYPE_CHECKING:
    import torch

Exporter = Literal["dynamo", "torchscript"]
"""Which of PyTorch's exporters writes the graph; the two write different dialects, see `export_onnx`."""


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra of fgq brings it.

    Raises
    ------
    ConfigError
        If the package is not installed.
    """
    # The packages used here carry or build their weights; none may ask a model hub for anything.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"package {package!r}: not found ({error}), wanted for this command; "
            f"install the extra that brings it: pip install 'fgq[{extra}]'"
        ) from error


def export_onnx(
    module: "torch.nn.Module",
    inputs: Mapping[str, "torch.Tensor"],
    output: str,
    dynamic: Mapping[str, Mapping[int, str]],
    exporter: Exporter = "dynamo",
) -> onnx.ModelProto:
    """Export a module in evaluation mode, with the given axes left dynamic.

    ``dynamo``, PyTorch's exporter since 2.9, folds constants and batch normalization into the weights.
    ``torchscript`` is the one before it, which most ONNX files in circulation come from: shapes are computed
    by chains of Shape, Gather and Concat, constants are nodes, and BatchNormalization is kept here as a node.

    Parameters
    ----------
    module : torch.nn.Module
        Takes the inputs in order, gives one tensor. Left as it was found.
    inputs : mapping of str to torch.Tensor
        Example inputs. Dynamic axes must be longer than 1 in them: torch.export takes a 1 for a constant.
    output : str
        Name of the output.
    dynamic : mapping of str to mapping of int to str
        For each input its dynamic axes and their names. The output's axis 0 shares the first one's name.
    exporter : {"dynamo", "torchscript"}
        Which exporter.

    Returns
    -------
    onnx.ModelProto
        The model with its weights inside, without the exporter's notes on where each node came from.

    Raises
    ------
    ConfigError
        If torch or onnxscript is not installed.
    """
    torch = require("torch", "text")
    require("onnxscript", "text")
    from fgq.train.export import quiet_exporter

    with quiet_exporter(), torch.no_grad():
        if exporter == "dynamo":
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=[output],
                dynamic_shapes=tuple(dict(dynamic[name]) for name in inputs),
                dynamo=True,
                verbose=False,
            )
            model: onnx.ModelProto = program.model_proto
        else:
            buffer = BytesIO()
            batch = next(iter(dynamic.values()))[0]
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                buffer,
                input_names=list(inputs),
                output_names=[output],
                dynamic_axes={**{name: dict(axes) for name, axes in dynamic.items()}, output: {0: batch}},
                training=torch.onnx.TrainingMode.PRESERVE,
                dynamo=False,
            )
            model = onnx.load_from_string(buffer.getvalue())
    _strip_notes(model)
    return model


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model beside its place and rename it there, so that no half-written file is left.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        onnx.save(model, partial)
        partial.replace(path)
    except (OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error}); choose another place with -o.") from error


def _strip_notes(model: onnx.ModelProto) -> None:
    """Drop source lines and stack traces, which name files of the exporting machine."""
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, model.graph):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
