"""Networks of the usual topologies with seeded random weights, as ONNX models to convert and to time.

::

    python -m fgq.eval.topologies resnet50 -o resnet50.onnx
    python -m fgq.eval.topologies light_vgg19 -o vgg19.onnx

The five built here come from the transformers package, so that their graphs are the ones people convert;
the nine named ``light_*`` come from `fgq.eval.light_models`. Nothing here knows anything: use them for
structure, integers, size and speed, and never for accuracy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fgq.errors import ConfigError
from fgq.eval.command import run_command
from fgq.eval.light_models import LIGHT_MODELS, light_model
from fgq.eval.torch_export import Exporter, export_onnx, require, save_onnx

if TYPE_CHECKING:
    import onnx
    import torch

STATISTICS_BATCH = 8
"""Images whose activations give BatchNorm its running statistics."""


@dataclass(frozen=True, slots=True)
class Network:
    """A PyTorch module in evaluation mode, ready to run and to export.

    Attributes
    ----------
    module : torch.nn.Module
        Takes `inputs` in order and gives the logits, float32 [batch, classes].
    inputs : dict of str to torch.Tensor
        Example inputs, batch 2.
    dynamic : dict of str to dict of int to str
        For each input its dynamic axes and their names.
    """

    module: "torch.nn.Module"
    inputs: "dict[str, torch.Tensor]"
    dynamic: dict[str, dict[int, str]]

    def export(self, exporter: Exporter = "dynamo") -> "onnx.ModelProto":
        """Export to ONNX; see `fgq.eval.torch_export.export_onnx` for the two exporters."""
        return export_onnx(self.module, self.inputs, "logits", self.dynamic, exporter)


def resnet50(
    *,
    width: float = 1.0,
    blocks: Sequence[int] = (3, 4, 6, 3),
    image_size: int = 224,
    classes: int = 1000,
    seed: int = 0,
) -> Network:
    """ResNet-50 with the stride in the 3x3 convolutions: 53 convolutions, 25.6 M parameters.

    He et al., "Deep residual learning for image recognition" (2016), table 1.
    """
    config = require("transformers", "text").ResNetConfig(
        embedding_size=_channels(64, width),
        hidden_sizes=[_channels(c, width) for c in (256, 512, 1024, 2048)],
        depths=list(blocks),
        num_labels=classes,
    )
    return _image_classifier("ResNetForImageClassification", config, image_size, seed)


def mobilenetv2(*, width: float = 1.0, image_size: int = 224, classes: int = 1000, seed: int = 0) -> Network:
    """MobileNetV2 with depthwise convolutions and ReLU6: 52 convolutions, 3.5 M parameters.

    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (2018), table 2.
    """
    config = require("transformers", "text").MobileNetV2Config(
        depth_multiplier=width, tf_padding=False, num_labels=classes
    )
    return _image_classifier("MobileNetV2ForImageClassification", config, image_size, seed)


def convnext(
    *,
    width: float = 1.0,
    blocks: Sequence[int] = (3, 3, 9, 3),
    image_size: int = 224,
    classes: int = 1000,
    seed: int = 0,
) -> Network:
    """ConvNeXt-T with 7x7 depthwise convolutions, LayerNorm, GELU and layer scale: 28.6 M parameters.

    Liu et al., "A ConvNet for the 2020s" (2022), table 9.
    """
    config = require("transformers", "text").ConvNextConfig(
        hidden_sizes=[_channels(c, width) for c in (96, 192, 384, 768)],
        depths=list(blocks),
        num_labels=classes,
    )
    return _image_classifier("ConvNextForImageClassification", config, image_size, seed)


def vit(
    *,
    hidden: int = 192,
    layers: int = 12,
    image_size: int = 224,
    patch_size: int = 16,
    classes: int = 1000,
    seed: int = 0,
) -> Network:
    """Vision transformer with heads of 64 channels; as it stands ViT-Ti/16, 5.7 M parameters.

    Dosovitskiy et al., "An image is worth 16x16 words" (2021); Touvron et al., "Training data-efficient
    image transformers" (2021), table 1.
    """
    config = require("transformers", "text").ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        image_size=image_size,
        patch_size=patch_size,
        num_labels=classes,
        attn_implementation="eager",
    )
    return _image_classifier("ViTForImageClassification", config, image_size, seed)


def bert(
    *, hidden: int = 128, layers: int = 2, vocabulary: int = 30522, classes: int = 2, seed: int = 0
) -> Network:
    """BERT encoder with heads of 64 channels and a classifier; as it stands BERT-Tiny, 4.4 M parameters.

    Turc et al., "Well-read students learn better" (2019), table 1.
    """
    torch = require("torch", "text")
    transformers = require("transformers", "text")
    from fgq.eval.torch_modules import TextLogits, initialize_like_trained

    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        num_labels=classes,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = TextLogits(transformers.BertForSequenceClassification(config))
        initialize_like_trained(module)
        inputs = {
            "input_ids": torch.randint(0, vocabulary, (2, 16)),
            "attention_mask": torch.ones(2, 16, dtype=torch.int64),
            "token_type_ids": torch.zeros(2, 16, dtype=torch.int64),
        }
    return Network(module.eval(), inputs, {name: {0: "batch", 1: "sequence"} for name in inputs})


TOPOLOGIES: Mapping[str, Callable[..., Network]] = {
    "resnet50": resnet50,
    "mobilenetv2": mobilenetv2,
    "convnext": convnext,
    "vit": vit,
    "bert": bert,
}

SMALL: Mapping[str, Mapping[str, Any]] = {
    "resnet50": {"width": 1 / 8, "blocks": (2, 1, 1, 1), "image_size": 64, "classes": 10},
    "mobilenetv2": {"width": 1 / 4, "image_size": 64, "classes": 10},
    "convnext": {"width": 1 / 6, "blocks": (1, 1, 2, 1), "image_size": 64, "classes": 10},
    "vit": {"hidden": 128, "layers": 2, "image_size": 32, "patch_size": 8, "classes": 10},
    "bert": {"vocabulary": 1000, "classes": 3},
}
"""Options that keep a topology's every kind of layer and make it small enough for a test."""


def _channels(count: int, width: float) -> int:
    """Scale a channel count, to a multiple of 8."""
    return max(8, 8 * round(count * width / 8))


def _image_classifier(architecture: str, config: Any, image_size: int, seed: int) -> Network:
    torch = require("torch", "text")
    transformers = require("transformers", "text")
    from fgq.eval.torch_modules import ImageLogits, initialize_like_trained, measure_statistics

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = ImageLogits(getattr(transformers, architecture)(config))
        initialize_like_trained(module)
        measure_statistics(module, torch.randn(STATISTICS_BATCH, 3, image_size, image_size))
        inputs = {"pixel_values": torch.randn(2, 3, image_size, image_size)}
    return Network(module.eval(), inputs, {"pixel_values": {0: "batch"}})


def main(
    name: Annotated[str, typer.Argument(help=", ".join((*TOPOLOGIES, *LIGHT_MODELS)))],
    output: Annotated[Path, typer.Option("-o", "--output", help="ONNX file to write.")],
    small: Annotated[bool, typer.Option("--small", help="Few and narrow layers, for tests.")] = False,
    torchscript: Annotated[
        bool, typer.Option("--torchscript", help="PyTorch's older exporter; keeps BatchNormalization.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Write a network of random weights as an ONNX file."""
    if name in TOPOLOGIES:
        options = SMALL[name] if small else {}
        network = TOPOLOGIES[name](**options, seed=seed)
        save_onnx(network.export("torchscript" if torchscript else "dynamo"), output)
    elif name in LIGHT_MODELS:
        save_onnx(light_model(name, seed), output)
    else:
        raise ConfigError(
            f"topology {name!r}: not known, wanted one of {', '.join((*TOPOLOGIES, *LIGHT_MODELS))}."
        )


if __name__ == "__main__":
    run_command(main)
