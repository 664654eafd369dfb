"""`train --dry-run`: a configuration's whole path on random weights and drawn pictures, and what the real run would be.

Shards are drawn and indexed; training stops half-way and goes on from its checkpoint; the last one is evaluated in the format of
Google Open Images. On a GPU this is the configuration's own size; on a CPU images are 64 px and the batch is 4 pairs a process.
"""

import argparse
import csv
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import torch.distributed as dist

from benchmarks.reproduction import config as configs
from benchmarks.reproduction import evaluate, plan, prepare, synthetic, train
from benchmarks.reproduction.place import Place, joined

STEPS = 2
"""In each of two epochs."""
PICTURES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `train` takes besides its own, to ask for this instead."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="try the whole path on random weights and drawn pictures, and print the command, the table and the hours to expect",
    )


def run(options: argparse.Namespace) -> None:
    """What the module says, in `--run` or a folder that is removed afterwards."""
    with joined() as place:
        if place.rank == 0:
            print(plan.describe(configs.load(options.config, options.set), options.config, options.set), flush=True)
        small = []
        if place.device.type == "cpu":
            small = ["data.size=64", f"train.batch={4 * place.size}", "train.chunk=2"]
        config = configs.load([*options.config, "dry_run"], [*small, *options.set])
        with TemporaryDirectory() as temporary:
            folder = shared(place, str(options.run or temporary))
            if place.rank == 0:
                prepare.make_synthetic(folder / "data", STEPS * config.train.batch)
            place.wait()
            for until in (STEPS, 2 * STEPS):
                train.train(config, folder / "data", folder / "run", place, until)
            if place.rank == 0:
                score(folder)
                print("The dry run is through: trained, stopped, went on, evaluated.")
            place.wait()


def shared(place: Place, folder: str) -> Path:
    """The folder of rank 0."""
    names = [folder]
    if place.size > 1:
        dist.broadcast_object_list(names, src=0, device=place.device)
    return Path(names[0])


def score(folder: Path) -> None:
    """Zero-shot scores of the newest checkpoint on a few pictures of known classes. They mean nothing."""
    images = folder / "images"
    images.mkdir()
    draw = random.Random(0)
    with (folder / "classes.csv").open("w", newline="") as bank, (folder / "labels.csv").open("w", newline="") as labels:
        csv.writer(bank).writerows([("LabelName", "DisplayName "), *((f"/m/{name}", name) for name in synthetic.CLASSES)])
        rows = csv.writer(labels)
        rows.writerow(("ImageID", "Source", "LabelName", "Confidence"))
        for number in range(PICTURES):
            name = synthetic.CLASSES[number]
            synthetic.draw_class(name, (96, 80), draw)[0].save(images / f"{number}.jpg")
            rows.writerow((number, "verification", f"/m/{name}", 1))
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    paths = {"images": images, "classes": folder / "classes.csv", "labels": folder / "labels.csv", "out": folder / "results"}
    named = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    evaluate.run(parser.parse_args([str(folder / "run"), "--benchmark", "goi", "--workers", "0", *named]))
