"""Block-wise reconstruction by gradient: weights chosen for what they do to the output of a whole block.

`blocks` cuts a graph where one value alone passes, `operators` and `module` turn a block into a PyTorch
module whose quantized weights (`weights`) can be trained, `training` does so, and `blockwise` goes through
the blocks. Needs the extra ``train``.
"""
