if __name__ != "fgq.kernels":
    raise ImportError("import fgq.kernels: the folder imported by its own name is a second copy of it")
