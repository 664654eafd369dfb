"""The parts of ``python -m otter_losses.audit``."""
