"""The paper's experiment: prepare pairs, train, evaluate, and the table beside the authors' numbers."""
