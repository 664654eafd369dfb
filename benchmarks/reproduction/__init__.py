"""The paper's training and zero-shot evaluation: ``python -m benchmarks.reproduction {prepare,train,evaluate,table}``."""
