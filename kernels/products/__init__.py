"""Products of activations with quantized weights: matrix products and convolutions."""
