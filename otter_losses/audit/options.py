"""What an audit is asked for, checked."""

from dataclasses import dataclass

from otter_losses.checks import check_count

PAIRS_A_NEIGHBOUR = 4
"""The fewest pairs for each neighbour. Of fewer, neighbours are no longer near."""

MOST_COMPONENTS = 1024


@dataclass(frozen=True)
class Options:
    """The arguments of `pair_trust` that decide what is found; in a group the same on every rank."""

    k: int
    components: int
    common_space: bool | None
    shards: int
    search: str
    seed: int

    def check(self) -> None:
        for name in ("k", "components", "shards"):
            check_count(name, getattr(self, name), 1)
        check_count("seed", self.seed, 0)
        if self.components > MOST_COMPONENTS:
            raise ValueError(f"components is {self.components}; need an int of at most {MOST_COMPONENTS}.")
        if self.common_space is not None and not isinstance(self.common_space, bool):
            raise TypeError(f"common_space is {self.common_space!r}; need True, False, or None to find out.")
        if self.search not in ("exact", "faiss"):
            raise ValueError(f"search is {self.search!r}; need 'exact' or 'faiss'.")
        if self.search == "faiss" and self.shards > 1:
            raise ValueError(
                f"search is 'faiss' and shards is {self.shards}; need shards=1 with it. Each is a way to search less."
            )

    def check_pairs(self, pairs: int, grouped: bool) -> None:
        """There are enough, and they are where the search can find them."""
        if grouped and (self.search == "faiss" or self.shards > 1):
            raise ValueError(
                f"group is given with search={self.search!r} and shards={self.shards}; need search='exact' and shards=1 with it. "
                "Leave group out: one process then has all pairs."
            )
        least = PAIRS_A_NEIGHBOUR * self.k * self.shards
        if pairs < least:
            of_shards = f" and shards {self.shards}" if self.shards > 1 else ""
            raise ValueError(
                f"there are {pairs} pairs, and k is {self.k}{of_shards}; need at least {least} pairs, {PAIRS_A_NEIGHBOUR} for "
                f"each neighbour{' in each shard' if self.shards > 1 else ''}. Audit more pairs at once, or take a smaller k."
            )
