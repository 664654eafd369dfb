"""What is measured of the losses, a room for each question; everything found is in ``benchmarks/results``.

- `speed`: what does a loss cost, on a CPU and on a GPU, in time, memory and accuracy, beside what people run today?
- `roofline`: what is the least it could cost, on one chip and on 512?
- `kernels`: what do the compilers make of every kernel?
- `studies`, `reproduction`: does it help?

The modules beside the rooms are their commands, ``python -m benchmarks.floors``, and what the rooms share.
"""
