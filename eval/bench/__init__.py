"""How fast the kernels are, beside other engines on the same layers and beside the limits of the machine.

`fgq bench kernels` measures and prints; `python -m fgq.eval.bench.kernel_report` turns its JSON into
docs/benchmarks.md and a roofline plot.
"""
