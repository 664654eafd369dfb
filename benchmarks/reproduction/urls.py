"""The list of addresses that img2dataset downloads, and its command."""

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.reproduction.bad import Bad, Tally
from benchmarks.reproduction.captions import Row
from benchmarks.reproduction.files import replacing

URLS = "urls.jsonl"


def write_urls(folder: Path, rows: Iterable[Row | Bad]) -> None:
    """Writes the list that img2dataset downloads, and prints the command.

    JSON lines: its reader of TSV takes the quotes in captions for quoting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, bad = 0, Tally()
    with replacing(folder / URLS) as file:
        for row in rows:
            if isinstance(row, Row) and row.url:
                file.write(json.dumps({"key": row.key, "caption": row.caption, "url": row.url}) + "\n")
                count += 1
            else:
                bad.add(row if isinstance(row, Bad) else Bad(row.key, "no address"))
    bad.show()
    print(f"{count:,} addresses in {folder / URLS}")
    print(f"Download (pip install img2dataset), then prepare what came:\n{download_command(folder)}")


def download_command(folder: Path) -> str:
    """What downloads `folder`/urls.jsonl into shards, already resized as the transform does it."""
    return (
        f"img2dataset --url_list {folder / URLS} --input_format jsonl --url_col url --caption_col caption "
        f"--output_format webdataset --output_folder {folder / 'shards'} --image_size 256 --resize_mode keep_ratio "
        "--resize_only_if_bigger True --encode_quality 95 --processes_count 16 --thread_count 64 --retries 1\n"
        f"python -m benchmarks.reproduction prepare {folder / 'shards'}"
    )
