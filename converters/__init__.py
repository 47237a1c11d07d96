"""ONNX in and out: the reader, the passes over the graph, the writers and the self-check."""

if __name__ != "fgq.converters":
    raise ImportError("import fgq.converters: the folder imported by its own name is a second copy of it")
