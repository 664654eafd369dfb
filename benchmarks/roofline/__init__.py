"""The least that a loss could cost: `floors` of one chip, counted, under `ceilings`, measured; `scaling` to many.

``python -m benchmarks.floors`` and ``python -m benchmarks.scaling``.
"""
