"""Adapters of a few lines to other training codebases; each needs its own package, which is imported with it."""
