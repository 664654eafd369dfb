"""Fused passes over row blocks for GPUs, written in Triton, which is optional: the modules here are imported on demand."""
