"""The command of `benchmarks.roofline.scaling`."""

import argparse
import os
from pathlib import Path

import torch

from benchmarks import markdown
from benchmarks.measure import RESULTS, machine
from benchmarks.roofline import scaling
from benchmarks.roofline.scaling.derived import MFU, TOWERS, derived
from benchmarks.roofline.scaling.measured import measure
from benchmarks.roofline.scaling.network import EFFICIENCY, NETWORKS, NVLINK
from benchmarks.roofline.scaling.report import report


def main() -> None:
    parser = argparse.ArgumentParser(description=scaling.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--worlds", type=int, nargs="+", default=[1, 2, 4], help="numbers of local processes; 1 must be among them"
    )
    parser.add_argument("--own", type=int, default=512, help="pairs a process where they are fixed")
    parser.add_argument("--pairs", type=int, default=2048, help="N where it is fixed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 65536, 1 << 20, 1 << 22, 1 << 24], help="bytes")
    parser.add_argument("--repetitions", type=int, default=11)
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling-cpu", help="where to write, without ending")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes_of_n = sorted({options.own * ranks for ranks in options.worlds} | {options.pairs})
    cells = sorted(
        {(1, pairs) for pairs in sizes_of_n}
        | {(ranks, pairs) for ranks in options.worlds for pairs in (options.own * ranks, options.pairs)}
    )
    about = {**machine("cpu"), "cores": os.cpu_count()}
    found = measure(sorted(options.worlds), cells, options.sizes, options.repetitions)
    rows = derived()
    text = report(about, found, rows)
    assumed = {"efficiency": EFFICIENCY, "mfu": MFU, "towers": TOWERS, "nvlink": NVLINK, "networks": [vars(n) for n in NETWORKS]}
    markdown.write(options.output, text, {"machine": about, "measured": found, "assumed": assumed, "derived": rows})


if __name__ == "__main__":
    main()
