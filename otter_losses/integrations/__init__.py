"""Adapters of a few lines to other training codebases; each imports its own, which must be installed."""
