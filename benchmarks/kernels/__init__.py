"""What the compilers make of every kernel, without a GPU: registers, shared memory, spills; and the bytes each must move.

    python -m benchmarks.kernels

Runs every loss in Triton's interpreter, in every way that leads to other kernels, and compiles what was launched for sm_70
(V100), sm_80 (A100), sm_90 (H100, H200) and sm_100 (B200), for AMD's gfx90a (MI200) and gfx942 (MI300), and for sm_90 also what
a batch launches whose size is odd; beside it the CUDA C++ kernels, where NVRTC is installed. Reads each binary's resources and
writes ``benchmarks/results/kernels.{json,md}``. The bytes are counted, not measured.
"""
