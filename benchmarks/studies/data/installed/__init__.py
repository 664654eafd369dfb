"""Pairs from installed PyPI packages, those of the demo, and their features."""
