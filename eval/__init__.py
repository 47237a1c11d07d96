if __name__ != "fgq.eval":
    raise ImportError("import fgq.eval: the folder imported by its own name is a second copy of it")
