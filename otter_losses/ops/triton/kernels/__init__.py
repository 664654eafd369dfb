"""Triton kernels: a tile source, an epilogue, and a program that owns what it writes.

A tile of an N x N matrix is loaded from a stored block or computed where it is needed (`tiles`); what is done to it is an
epilogue (`epilogues`). Each module declares its kernels with the tiles they may be launched with and the matrices they walk
over.

Every program owns the tile it writes, or a whole row or column of tiles, so no two write to one place: no atomics, and results
repeat to the bit. Sums are float32. A row block has m rows, of which the first is row `row_offset` of the whole matrix, for its
diagonal, and n columns; stored blocks are contiguous. `scale`, `bias` and the like point to one number each.
"""
