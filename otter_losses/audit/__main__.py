"""``python -m otter_losses.audit``: from files of features to a report and lists of what to keep."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from otter_losses import __version__
from otter_losses.audit.command.arguments import parser
from otter_losses.audit.command.columns import CAPTIONS, KEYS, KINDS, PICTURES, read_column
from otter_losses.audit.command.feature_files import read_features
from otter_losses.audit.command.files import InputError, find
from otter_losses.audit.command.folder import AuditFolder, fingerprint
from otter_losses.audit.command.lists import LISTS, Names, Selection, write_lists
from otter_losses.audit.command.page import Kept, write_page
from otter_losses.audit.command.progress import Progress
from otter_losses.audit.kept import whole_file
from otter_losses.audit.report import PairTrust
from otter_losses.audit.trust import pair_trust

FEATURES = ("image_features", "text_features")
JUDGED_BY = ("k", "components", "common_space", "shards", "search", "seed")
"""Options that make an audit another one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 2 where what was given cannot be taken, 130 where a user stopped it."""
    given = parser().parse_args(arguments)
    try:
        audit(given)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, torch.OutOfMemoryError):
        print("error: there is not enough memory; give --max-memory less than there is, or take --device cpu.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def audit(given: Namespace) -> None:
    progress = Progress()
    images, texts = (read_features(name, getattr(given, name)) for name in FEATURES)
    pairs = images.shape[0]
    if texts.shape[0] != pairs:
        raise InputError(
            f"image_features has {pairs} rows and text_features {texts.shape[0]}; need the same: row i of both is pair i."
        )
    names = Names(
        captions=read_column("--captions", given.captions, CAPTIONS, pairs) if given.captions else None,
        keys=read_column("--keys", given.keys, KEYS, pairs) if given.keys else None,
        pictures=read_column("--images", given.images, PICTURES, pairs) if given.images else None,
        picture_folder=find("--images", given.images, KINDS).files[0].parent if given.images else Path(),
    )
    options = {name: getattr(given, name) for name in JUDGED_BY}
    digests = {name: fingerprint(name, each, progress) for name, each in zip(FEATURES, (images, texts), strict=True)}
    folder = AuditFolder(given.out, digests | options | {"otter_losses": __version__})
    result = folder.result()
    if result is None:
        result = pair_trust(
            images,
            texts,
            **options,
            device=given.device,
            max_memory=given.max_memory,
            progress=progress,
            resume=folder.blocks,
        )
        folder.keep(result)
    else:
        print("this audit is finished; its lists and its page are written anew.", file=sys.stderr)
    progress.close()
    _write(given, result, names, options)


def _write(given: Namespace, result: PairTrust, names: Names, options: dict[str, Any]) -> None:
    summary = given.out / "summary.json"
    summary.unlink(missing_ok=True)  # it is there when all is
    selection = Selection.of(result, given.keep, given.keep_share, given.top)
    write_lists(given.out, result, selection, names)
    written = [name for name in LISTS if (given.out / name).exists()]
    with whole_file(given.out / "report.html") as file:
        file.write(write_page(result, selection, names, given.top, [*written, summary.name]).encode(errors="replace"))
    kept = Kept.of(result.trust, selection.kept)
    found = {
        "pairs": len(result.trust),
        "wrong_share": result.wrong_share,
        "wrong_share_interval": list(result.wrong_share_interval),
        "kept": kept.pairs,
        "wrong_share_of_kept": kept.wrong,
        "least_trust_kept": float(result.trust[selection.kept].min()) if kept.pairs else None,
        "duplicates": len(result.duplicates),
        "common_space": result.common_space,
        "options": options | {"keep": given.keep, "keep_share": given.keep_share, "top": given.top},
        "inputs": {name: getattr(given, name) for name in (*FEATURES, "captions", "keys", "images")},
        "otter_losses": __version__,
    }
    with whole_file(summary) as file:
        file.write(json.dumps(found, indent=2).encode())
    low, high = result.wrong_share_interval
    print(
        f"{len(result.trust):,} pairs, about {result.wrong_share:.1%} of them wrong (95 % interval {low:.1%} to {high:.1%}); "
        f"{kept.pairs:,} kept. Look at {given.out / 'report.html'}"
    )


if __name__ == "__main__":
    sys.exit(main())
