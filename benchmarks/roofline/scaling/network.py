"""What a collective costs: links, and NCCL's way of choosing among its algorithms."""

import math
from dataclasses import dataclass

HOST = 8
"""GPUs of a host."""
EFFICIENCY = 0.8

NVLINK = {"V100": 150e9, "A100": 300e9, "H100": 450e9, "H200": 450e9, "B200": 900e9}
"""Bytes a second and direction of a GPU: half of what NVIDIA's NVLink page and datasheets give for both."""


@dataclass(frozen=True)
class Network:
    """Bytes a second and direction of a host of 8 GPUs."""

    name: str
    bandwidth: float
    source: str


NETWORKS = (
    Network("InfiniBand NDR", 8 * 50e9, "8 ConnectX-7 of 400 Gb/s, one a GPU: DGX H100/H200 datasheet"),
    Network("Ethernet", 12.5e9, "one 100 Gb/s card a host: IEEE 802.3"),
)

NCCL = {
    # algorithm, protocol: base latency, of a step within a host, between hosts (microseconds), share of the bandwidth
    ("ring", "LL"): (3.6, 0.47, 2.7, 1 / 4),
    ("ring", "Simple"): (8.4, 3.4, 9.6, 1.0),
    ("tree", "LL"): (4.4, 0.52, 5.0, 0.9 / 3.8),
    ("tree", "Simple"): (0.0, 28.0, 50.0, 0.9),
}
"""NVIDIA/nccl, src/graph/tuning.cc at 01afd20: baseLat, hwLat of NVLink and NET, and what it multiplies bandwidths with."""


@dataclass(frozen=True)
class Collective:
    """A gather of so many bytes in all, or a sum of so many on every rank, of which a scatter leaves each its own."""

    name: str
    kind: str
    bytes: float

    def sent(self, ranks: int) -> float:
        """Bytes that a rank must send at least."""
        return (2 if self.kind == "sum" else 1) * self.bytes * (ranks - 1) / ranks

    def seconds(self, ranks: int, nvlink: float, network: Network) -> float:
        """By NCCL's fastest way."""
        if ranks == 1:
            return 0.0
        hosts, within = math.ceil(ranks / HOST), min(ranks, HOST)
        bus = EFFICIENCY * (nvlink if hosts == 1 else min(nvlink, network.bandwidth))
        rounds = 2 if self.kind == "sum" else 1
        found = []
        for (algorithm, protocol), (base, inside, between, share) in NCCL.items():
            inside *= 1.8 if protocol == "LL" and hosts > 1 else 1
            if algorithm == "ring":
                latency = base + rounds * ((ranks - hosts) * inside + (hosts - 1) * between)
                found.append(1e-6 * latency + self.sent(ranks) / (bus * share))
            elif self.kind == "sum":
                latency = base + 2 * ((within - 1) * inside + math.ceil(math.log2(hosts)) * between)
                found.append(1e-6 * latency + 2 * self.bytes / (bus * share))
        return min(found)
