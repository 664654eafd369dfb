"""What a loss costs, forward and backward, in time, memory and accuracy, beside what people run today.

``python -m benchmarks.speed`` on a CPU, ``python -m benchmarks.gpu`` on a GPU, ``python -m benchmarks.memory`` one peak alone,
``python -m benchmarks.training_step`` the loss in a training step; ``python -m benchmarks.predictions`` what is expected.
"""
