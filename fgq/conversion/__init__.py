"""Conversion of float models: calibrated, quantized, written and checked."""
