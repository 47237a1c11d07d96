"""Conversion options, from Python, the command line or a file."""

from fgq.config.choices import Activations, ExportForm, Form, Misfit, Step
from fgq.config.conversion import ConversionConfig, options_of_scheme
from fgq.config.files import read_config
from fgq.config.recipes import Recipe

__all__ = [
    "Activations",
    "ConversionConfig",
    "ExportForm",
    "Form",
    "Misfit",
    "Recipe",
    "Step",
    "options_of_scheme",
    "read_config",
]
