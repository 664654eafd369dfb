"""The nearest rows, against sorted products in float64."""

import pytest
import torch
from torch import Tensor

from otter_losses.audit import search
from otter_losses.audit.projection import UNIT, whole
from otter_losses.audit.search import merge, nearest, rows_of


def features(family: str, rows: int, width: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    vectors = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    if family == "copies":
        vectors = vectors[torch.randint(rows // 5, (rows,), generator=generator)]
    elif family == "equal":
        vectors = vectors[:1].expand(rows, width)
    elif family == "zero":
        vectors = torch.zeros_like(vectors)
    return whole(vectors)


def expected(queries: Tensor, keys: Tensor, k: int, own: int | None) -> Tensor:
    scores = queries.double() @ keys.double().T
    if own is not None:
        scores.diagonal(own).fill_(-torch.inf)
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :k]


@pytest.mark.parametrize("family", ["random", "copies", "equal", "zero"])
@pytest.mark.parametrize("width", [32, 100, 1 << 12])
def test_finds_what_sorting_finds_and_of_equal_ones_the_earlier(family: str, width: int) -> None:
    keys = features(family, 301)
    queries = keys[130:200]
    assert torch.equal(rows_of(nearest(queries, keys, 7, width, own=130)), expected(queries, keys, 7, 130))
    assert torch.equal(rows_of(nearest(queries, keys, 7, width)), expected(queries, keys, 7, None))


def test_looks_at_many_equal_ones_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "LOOKED_AT", 1000)
    keys = features("equal", 500)
    assert torch.equal(rows_of(nearest(keys, keys, 5, 256, own=0)), expected(keys, keys, 5, 0))


@pytest.mark.parametrize("family", ["random", "copies"])
def test_parts_merged_are_the_whole(family: str) -> None:
    keys, queries = features(family, 400), features(family, 50)
    whole_search = nearest(queries, keys, 9, 128)
    parts = [nearest(queries, keys[rows], 9, 128, rows.start) for rows in (slice(0, 170), slice(170, 400))]
    assert torch.equal(merge(*parts), whole_search)
    assert torch.equal(merge(*reversed(parts)), whole_search)


def test_where_there_are_fewer_rows_than_neighbours() -> None:
    keys = features("random", 4)
    found = rows_of(nearest(keys, keys, 6, 4096, own=0))
    assert torch.equal(found[:, :3], expected(keys, keys, 3, 0))
    assert torch.equal(found[:, 3:], torch.full((4, 3), -1))


@pytest.mark.parametrize("width", [3, 256, 1024])
def test_float32_sums_products_of_whole_vectors_without_error(width: int) -> None:
    one, other = features("random", 300, width), features("copies", 300, width)
    one[0] = other[0] = whole(torch.eye(1, width, dtype=torch.float64))[0]
    exact = one.double() @ other.double().T
    order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
    assert torch.equal((one[:, order].float() @ other[:, order].float().T).double(), exact)
    assert float(exact.abs().max()) <= UNIT**2


def test_whole_vectors_keep_cosines() -> None:
    vectors = torch.randn(200, 256, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plain, rounded = (torch.nn.functional.normalize(each) for each in (vectors, whole(vectors).double()))
    assert (plain @ plain.T - rounded @ rounded.T).abs().max() < 6e-4
