"""The losses trained and compared on drawn pictures and their names: heads over frozen features, unseen concepts to be named.

Each study is a command of its own:

- `demo` (``python -m benchmarks.demo``): clean and shuffled captions, one plot, and an audit; minutes on two cores;
- `table` (``python -m benchmarks.realpairs``): the paper's count of wins in small, seven settings by six scores;
- `diagonal` (``python -m benchmarks.realpairs.diagonal``): what the released code's wrong diagonals cost, on two of them;
- `registered` (``python -m benchmarks.realpairs.registered``): RobustLoss with trust against all of them, by a protocol written
  before the first score;
- `trust` (``python -m benchmarks.realpairs.trust``): which of the shuffled captions the audit finds;
- `temperature` (``python -m benchmarks.realpairs.temperature``): how sharp InfoNCE's scales are for held-out pairs, beside
  what the registered run found there;
- `keep` (``python -m benchmarks.realpairs.keep``): whether leaving out what the audit doubts does as well as weighing it, on the
  validation concepts;
- `collapse` (``python -m benchmarks.realpairs.collapse``): why RobustLoss has a guard, on the validation concepts.

All of them have `data` (from packages to features and their split) and `training` (losses, heads, the loop). In `demo` and
`table`, `problem` says what is trained on and asked, `run` trains once, `pipeline` does so for all, `report` and `plots` say what
came out, and `choose` is how the learning rates were chosen.
"""
