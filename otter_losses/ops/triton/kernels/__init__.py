"""Triton kernels: each walks once over a row block (m, n) of an N x N matrix and keeps all else in vectors.

Every program owns the tile it writes, or a whole row or column of tiles, so no two write to one place: no atomics, and results
repeat to the bit. Sums are float32. `start` is the block's first row in the whole matrix, for its diagonal. Blocks are
contiguous; `scale` and `bias` point to one number each.
"""
