"""OTTER and its baselines on real pictures that PyPI packages deliver: ``python -m benchmarks.demo``.

`pairs` lists and renders the pictures, `features` encodes them once, `split` and `problem` hold concepts out, `train` makes one
run, `pipeline` makes all of them and the report. ``python -m benchmarks.demo.choose`` is how the learning rate was chosen.
"""
