"""RobustLoss with the trust of `pair_trust` against the paper's losses, and against controls; the protocol is README.md."""
