"""CUDA C++ for NVIDIA GPUs, built on first use by what is optional; `nvrtc` and `sinkhorn` are imported on demand."""
