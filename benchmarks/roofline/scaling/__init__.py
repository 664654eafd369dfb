"""Time, bytes and memory of a sharded step against the number of ranks. ``python -m benchmarks.scaling``."""
