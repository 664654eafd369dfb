"""Arrays kept on disk."""

from pathlib import Path

import numpy as np

from benchmarks.studies.data.cache import Arrays, load_or_make


def test_cache_is_used_when_intact_and_made_anew_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "features.npz"
    made: list[int] = []

    def make() -> Arrays:
        made.append(len(made) + 1)
        return {"images": np.full((4, 3), made[-1], dtype=np.float16)}

    def load(fingerprint: str = "a") -> tuple[float, bool]:
        arrays, cached = load_or_make(path, fingerprint, make)
        return float(arrays["images"].mean()), cached

    assert load() == (1.0, False)
    assert load() == (1.0, True)
    intact = path.read_bytes()
    middle = len(intact) // 2
    flipped = intact[:middle] + bytes([intact[middle] ^ 1]) + intact[middle + 1 :]
    for number, damaged in enumerate((b"", b"no archive", intact[:-5], flipped), start=2):
        path.write_bytes(damaged)
        assert load() == (number, False)
        assert load() == (number, True)
    assert load("b") == (6.0, False)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
