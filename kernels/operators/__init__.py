"""Operators between products, on quantized activations or on rows of real values."""
