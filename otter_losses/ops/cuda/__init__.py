"""CUDA C++ for NVIDIA GPUs, built on first use by what is optional; `compiler` and `transport` are imported on demand."""
