"""Weights chosen for what they do to the layer's output on calibration data.

`moments` holds what the data say, `problem` the least-squares problem that follows, `codebook`, `feedback`
and `descent` the searches for integers, `rows` what they find, and `recipes` their order. `reductions` turns
layers into matrix products, `pieces` runs a network piece by piece, and `layerwise` goes through the layers.
"""
