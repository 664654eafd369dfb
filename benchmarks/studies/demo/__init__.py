"""OTTER and its baselines on real pictures that PyPI packages deliver, with ever more captions shuffled; see README.md."""
