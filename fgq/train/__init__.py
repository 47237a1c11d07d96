"""Quantized twins of PyTorch modules, fine-tuning, and export to the converter's format (extra `train`)."""

from fgq.train.conversion import load_converted
from fgq.train.export import export
from fgq.train.prepare import calibrate, prepare, quantized_layers

__all__ = ["calibrate", "export", "load_converted", "prepare", "quantized_layers"]
