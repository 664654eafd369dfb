"""The options of ``python -m otter_losses.audit``."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import torch

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for unit, base in (("iB", 1024), ("B", 1000), ("", 1024))
}

DESCRIPTION = """\
Which image-text pairs belong together, from features of frozen encoders: no labels, no noise rate.
Writes trust.npy, suspicious.csv, lists of what to keep, summary.json and report.html."""

FORMATS = """\
Features are (N, D), row i of both is pair i; the widths may differ. FILE is .npy, .npz, .safetensors or .parquet, a folder of
numbered files of one kind (img_emb_0.npy, img_emb_1.npy, ...), or a quoted pattern. FILE:NAME names an array, a tensor or a
column. Texts are .txt (one a line), .csv, .tsv, .jsonl, .parquet, .npy or .npz, in the order of the rows; NAME is found by itself
where the column is called as usual (caption, key, uid, image_path, ...).

The same command again goes on where it was stopped. Of an audit that is finished, it writes the lists and the page anew, as for
another --keep, --top or --captions.

  python -m otter_losses.audit images.npy texts.npy --captions captions.txt --out report
  python -m otter_losses.audit emb/img_emb emb/text_emb --captions emb/metadata --images emb/metadata --out report
  python -m otter_losses.audit 'metadata/*.npz:l14_img' 'metadata/*.npz:l14_txt' --keys 'metadata/*.parquet:uid' --out report"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "python -m otter_losses.audit",
        description=DESCRIPTION,
        epilog=FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = made.add_argument
    add("image_features", metavar="IMAGES", help="features of the images, FILE or FILE:NAME")
    add("text_features", metavar="TEXTS", help="features of their captions, in the same order")
    add("--out", type=Path, required=True, metavar="FOLDER", help="where the results go: a new or an empty folder")

    shown = made.add_argument_group("what the lists and the page show")
    add = shown.add_argument
    add("--captions", metavar="FILE", help="the captions, FILE or FILE:NAME")
    add("--keys", metavar="FILE", help="names of the pairs, as webdataset's keys or DataComp's uids, for the lists")
    add("--images", metavar="FILE", help="paths of the picture files, for the page")
    kept = shown.add_mutually_exclusive_group()
    kept.add_argument(
        "--keep", type=_share, default=0.5, metavar="TRUST", help="keep pairs of at least this trust, 0 to 1 (%(default)s)"
    )
    kept.add_argument(
        "--keep-share", type=_share, metavar="SHARE", help="keep this share of the pairs instead, 0 to 1, best first"
    )
    add("--top", type=_count(0), default=200, metavar="PAIRS", help="most suspicious pairs on the page (%(default)s)")

    add = made.add_argument_group("how pairs are judged").add_argument
    add("--k", type=_count(1), default=20, metavar="ROWS", help="neighbours that each pair is compared with (%(default)s)")
    add(
        "--components",
        type=_count(1),
        default=256,
        metavar="C",
        help="principal components that features are reduced to (%(default)s)",
    )
    add(
        "--common-space",
        action=argparse.BooleanOptionalAction,
        help="both encoders share a space, as CLIP's do, so that the cosine of image and caption tells (found out by itself)",
    )
    add(
        "--shards",
        type=_count(1),
        default=1,
        metavar="S",
        help="look for neighbours within S random parts: faster, less sure (%(default)s)",
    )
    add(
        "--search",
        choices=("exact", "faiss"),
        default="exact",
        help="how neighbours are found; faiss needs that package (%(default)s)",
    )
    add("--seed", type=_count(0), default=0, metavar="SEED", help="of what is drawn at random (%(default)s)")

    add = made.add_argument_group("where it runs").add_argument
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=_device, default=device, metavar="DEVICE", help="cpu, cuda, cuda:1 ... (here %(default)s)")
    add("--max-memory", type=_bytes, metavar="SIZE", help="for working memory beside the features, as 2GiB or 500MB")
    return made


def _count(low: int) -> Callable[[str], int]:
    def count(given: str) -> int:
        if not re.fullmatch(r"\d+", given) or int(given) < low:
            raise argparse.ArgumentTypeError(f"is {given!r}; need a whole number of at least {low}.")
        return int(given)

    return count


def _share(given: str) -> float:
    try:
        value = float(given)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"is {given!r}; need a number from 0 to 1.")
    return value


def _bytes(given: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", given)
    units = {name.lower(): size for name, size in UNITS.items()}
    if not found or found[2].lower() not in units or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"is {given!r}; need a size above 0, as 2GiB, 500MB or a number of bytes.")
    return int(float(found[1]) * units[found[2].lower()])


def _device(given: str) -> torch.device:
    try:
        device = torch.device(given)
        torch.empty(0, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise argparse.ArgumentTypeError(
            f"is {given!r}, which cannot be used ({str(error).splitlines()[0]}); need one of this machine with float64."
        ) from error
    return device
