"""What several layers ask of a graph, and sessions of onnxruntime."""
