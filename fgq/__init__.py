"""Convert pretrained ONNX models to ternary weights with fine-grained scales, and run them."""
