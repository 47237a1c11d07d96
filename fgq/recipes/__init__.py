"""Weights chosen for what they do to the layer's output on calibration data.

`moments` holds what the data say, `problem` the least-squares problem that follows, `codebook`, `feedback`
and `descent` the searches for integers, `rows` what they find, and `registered` their order: the recipes.
`selection` takes what held-out data like better, `fitting` does so for a layer. `reductions` turns layers
into matrix products, `pieces` runs a network piece by piece, and `layerwise` goes through the layers.
"""
