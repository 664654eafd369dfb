"""What the compilers make of every kernel, without a GPU: registers, shared memory, spills. ``python -m benchmarks.kernels``."""
