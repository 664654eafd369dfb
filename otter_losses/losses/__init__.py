"""The losses as modules, one a file: options and rank, no arithmetic."""
