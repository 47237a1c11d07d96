"""Data sets, accuracy with its uncertainty, and comparison of a converted with its float model."""

if __name__ != "fgq.eval":
    raise ImportError("import fgq.eval: the folder imported by its own name is a second copy of it")
