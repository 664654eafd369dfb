"""A step of each scheme on GPUs, derived: collectives, kernels, memory, and their share of a training step."""

from typing import Any

from benchmarks.roofline.chips import CHIPS, H200, Chip
from benchmarks.roofline.scaling.network import NETWORKS, NVLINK, Collective, Network
from benchmarks.roofline.work import ROUNDS, Work

WIDTH = 512
MFU = 0.4
LARGEST = 1 << 20
RELEASED_ACCESSES = 116
SCHEMES = ("global", "local", "InfoNCE", "released")

TOWERS = {"ViT-B/32": 44.1e9, "ViT-B/16": 123.0e9}
"""Operations of a pair, forward and backward, counted by torch.utils.flop_counter in open_clip's models (77 tokens)."""


def collectives(scheme: str, pairs: int, width: int = WIDTH, itemsize: int = 2, rounds: int = ROUNDS) -> list[Collective]:
    """Of one forward and backward, in order; a teacher as wide as the student."""
    features = Collective("features", "gather", float(itemsize) * pairs * width)
    vector = 4.0 * pairs
    backward = [
        Collective("gradients of the cross entropies", "gather", (4 if scheme == "global" else 2) * vector),
        Collective("gradient of the texts", "scatter", vector * width),
    ]
    column_lse = [Collective("column statistics", "sum", vector)] * 2
    mean = Collective("mean", "sum", 4.0)
    if scheme == "InfoNCE":
        return [features, *column_lse, mean, *backward]
    if scheme == "local":
        return [features, *column_lse, mean, mean, *backward]
    if scheme == "released":
        problem = Collective("a problem", "gather", 4.0 * pairs * pairs)
        return [features, features, features, features, problem, problem]
    sweeps = [Collective("column sums", "sum", vector), *[Collective("column sums", "sum", 2 * vector)] * rounds]
    statistics_ = [*column_lse, Collective("column statistics", "sum", vector)]
    return [features, features, features, *sweeps, *statistics_, mean, mean, *backward]


def kernel_seconds(scheme: str, chip: Chip, own: int, pairs: int) -> float:
    """What a rank computes, at least."""

    def floor(loss: str, columns: int) -> float:
        return Work(columns, WIDTH, True, rows=own).milliseconds(loss, chip, cached=False) / 1e3

    if scheme == "released":
        return floor("eager ClipLoss", pairs) + RELEASED_ACCESSES * 4.0 * pairs**2 / chip.bandwidth
    if scheme == "local" and own < pairs:
        return floor("InfoNCE", pairs) + floor("OTTER", own)
    return floor("InfoNCE" if scheme == "InfoNCE" else "OTTER", pairs)


def memory(scheme: str, own: int, pairs: int) -> float:
    """Bytes of a rank's matrices, of the gathered features and of the texts' gradient; row blocks aside."""
    features = 2.0 * pairs * WIDTH
    if scheme == "released":
        return 2 * 4.0 * pairs**2 + 4 * features + 2 * 4.0 * own * pairs
    work = Work(pairs if scheme == "global" else own, WIDTH, True, rows=own)
    kernel = 0.0 if scheme == "InfoNCE" or not work.stores_kernel() else 2 * work.square
    return kernel + (3 if scheme == "global" else 1) * features + 4.0 * pairs * WIDTH


def derive(chip: Chip, network: Network, ranks: int, own: int) -> dict[str, Any]:
    """One step of every scheme, and its share of a step with either tower."""
    pairs = ranks * own
    towers = {name: own * operations / (MFU * chip.half) for name, operations in TOWERS.items()}
    row: dict[str, Any] = {"chip": chip.name, "network": network.name, "ranks": ranks, "own": own, "pairs": pairs}
    for scheme in SCHEMES:
        kernel = kernel_seconds(scheme, chip, own, pairs)
        crossing = collectives(scheme, pairs)
        wire = sum(each.seconds(ranks, NVLINK[chip.name], network) for each in crossing)
        row[scheme] = {
            "kernel_s": kernel,
            "collectives_s": wire,
            "sent_bytes": sum(each.sent(ranks) for each in crossing),
            "memory_bytes": memory(scheme, own, pairs),
            "share": {name: (kernel + wire) / (kernel + wire + tower) for name, tower in towers.items()},
        }
    row["recomputed"] = not Work(pairs, WIDTH, True, rows=own).stores_kernel()
    return row


def fewest_pairs(chip: Chip, network: Network, own: int, scheme: str, tower: str, share: float) -> int | None:
    """N from which on the loss takes more than that share of a step, among powers of two of GPUs."""
    found = None
    for exponent in reversed(range(10)):
        if own << exponent > LARGEST:
            continue
        if derive(chip, network, 1 << exponent, own)[scheme]["share"][tower] <= share:
            break
        found = own << exponent
    return found


def derived() -> dict[str, list[dict[str, Any]]]:
    """Every derived row: b fixed, N fixed, and thresholds."""
    scale = [1, 8, 16, 64, 256, 512]
    grown = [
        derive(H200, network, ranks, own)
        for network in NETWORKS
        for own in (512, 2048, 4096)
        for ranks in scale
        if ranks * own <= LARGEST
    ]
    divided = [
        derive(H200, network, ranks, pairs // ranks) for network in NETWORKS for pairs in (32768, LARGEST) for ranks in scale[1:]
    ]
    thresholds = [
        {
            "chip": chip.name,
            "network": network.name,
            "tower": tower,
            "own": 2048,
            **{scheme: [fewest_pairs(chip, network, 2048, scheme, tower, share) for share in (0.05, 0.2)] for scheme in SCHEMES},
        }
        for chip in CHIPS
        for network in NETWORKS
        for tower in TOWERS
    ]
    return {"pairs_a_gpu_fixed": grown, "pairs_fixed": divided, "thresholds": thresholds}
