"""hit@k of ranks, and the two ways to rank what is equally similar."""

import doctest

import torch

from benchmarks import hit_at_k as module
from benchmarks.hit_at_k import hit_at_k, hit_counts, ranks_after_ties, ranks_in


def test_the_examples_in_the_docstrings_hold() -> None:
    failed, tried = doctest.testmod(module)
    assert tried
    assert not failed


def test_hit_at_k_by_hand() -> None:
    similarity = torch.tensor(
        [
            [0.9, 0.1, 0.2, 0.3],  # the true name 0 ranks first
            [0.9, 0.1, 0.2, 0.3],  # 3 ranks second
            [0.9, 0.1, 0.2, 0.3],  # 1 ranks last
            [0.5, 0.5, 0.5, 0.5],  # all tie: 2 ranks last
        ]
    )
    ranks = ranks_after_ties(similarity, torch.tensor([0, 3, 1, 2])).numpy()
    assert hit_at_k(ranks, ks=(1, 2, 3, 4)) == {1: 25.0, 2: 50.0, 3: 50.0, 4: 100.0}


def test_hits_in_lists_by_hand() -> None:
    top = torch.tensor([[0, 1, 2], [2, 1, 0], [1, 2, 0], [1, 0, 2]])
    answers = [[0], [0, 1], [], [2]]
    for k, count in ((1, 1), (2, 2), (3, 3)):
        assert hit_counts(ranks_in(top[:, :k], answers).numpy(), [k]) == {k: count}
