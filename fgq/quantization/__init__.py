"""The mathematics of quantization: schemes, quantized tensors, ternary and uniform fits."""
