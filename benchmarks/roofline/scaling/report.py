"""What was measured and what was derived, as Markdown."""

from typing import Any

from benchmarks import markdown
from benchmarks.markdown import short
from benchmarks.roofline.scaling.derived import LARGEST, MFU, SCHEMES, TOWERS, WIDTH
from benchmarks.roofline.scaling.network import EFFICIENCY, NETWORKS, NVLINK
from benchmarks.roofline.work import DEFAULT_MAX_MEMORY


def report(about: dict[str, Any], found: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> str:
    machine = markdown.heading(about)
    links = "; ".join(f"{name} {speed / 1e9:g} GB/s" for name, speed in NVLINK.items())
    networks = "; ".join(f"{each.name} {each.bandwidth / 1e9:g} GB/s a host ({each.source})" for each in NETWORKS)
    towers = ", ".join(f"{name} {operations / 1e9:g} GFLOP a pair" for name, operations in TOWERS.items())
    parts = [
        "# Time against the number of ranks",
        "`python -m benchmarks.scaling`; assumptions stand at its head.",
        f"## Measured: gloo on this machine\n\n{machine}, one thread a process; D = E = {WIDTH}, float32, forward + backward. "
        "The model is made of fastest repetitions, since the machine was shared: one process's time over the number of "
        "processes, slowed down as the slowest of processes is that do not talk, and the collectives by the fits below.",
        measured_table(found),
        f"## Derived: GPUs\n\nNothing below was measured. NVLink, a direction: {links} (NVIDIA's datasheets). "
        f"Networks: {networks}. {EFFICIENCY:.0%} of these is reached, with NCCL's latencies. "
        f"Towers: {towers}, at {MFU:.0%} of the product rate. `max_memory` {DEFAULT_MAX_MEMORY >> 30} GiB. "
        "Shares are of a step with ViT-B/32 where no other tower is named.",
    ]
    for network in NETWORKS:
        for name, title in (("pairs_a_gpu_fixed", "pairs a GPU fixed"), ("pairs_fixed", "N fixed")):
            chosen = [row for row in rows[name] if row["network"] == network.name]
            parts.append(f"### H200, {network.name}, {title}\n\n{step_table(chosen)}")
    parts.append(
        "### N from which on the loss takes more than 5 % / 20 % of a step\n\n2,048 pairs a GPU, up to 512 GPUs and N = "
        f"{LARGEST:,}; -: not up to there.\n\n{threshold_table(rows['thresholds'])}"
    )
    return "\n\n".join(parts) + "\n"


def measured_table(found: dict[str, Any]) -> str:
    steps, fits = [], []
    for row in found["steps"]:
        fastest = min(row["milliseconds"])
        times = [f"{row['median_ms']:,.0f}", f"{row['spread']:.0%}", f"{fastest:,.0f}"]
        model = [f"{row['model_ms']:,.0f}", f"{row['wire_ms']:,.0f}", f"{row['slowdown']:.2f}"]
        steps.append([f"{row['ranks']}", f"{row['pairs']:,}", *times, *model, f"{row['model_ms'] / fastest:.2f}"])
    for row in found["fits"]:
        fit = [f"{1e3 * row['latency_s']:.2f}", f"{row['bytes_per_s'] / 1e9:.2f}", f"{row['spread']:.0%}"]
        fits.append([f"{row['ranks']}", row["kind"], *fit])
    heads = ["processes", "N", "median ms", "IQR", "fastest ms", "model ms", "of it collectives", "slowdown", "model / fastest"]
    of_fits = ["processes", "collective", "latency, ms", "GB/s", "IQR"]
    return f"{markdown.table(heads, steps)}\n\n{markdown.table(of_fits, fits)}"


def percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"


def step_table(rows: list[dict[str, Any]]) -> str:
    """OTTER's kernels, collectives, bytes and memory, and all schemes' shares of a step with ViT-B/32."""
    lines = []
    for row in rows:
        otter, released = row["global"], row["released"]
        kernel = short(1e3 * otter["kernel_s"]) + (", recomputing" if row["recomputed"] else "")
        sizes = [short(otter["sent_bytes"] / 1e9), short(otter["memory_bytes"] / 1e9)]
        shares = [percent(otter["share"][tower]) for tower in ("ViT-B/32", "ViT-B/16")]
        shares += [percent(row[scheme]["share"]["ViT-B/32"]) for scheme in ("local", "InfoNCE", "released")]
        lines.append(
            [
                *(f"{row['ranks']}", f"{row['own']:,}", f"{row['pairs']:,}"),
                *(kernel, short(1e3 * otter["collectives_s"]), *sizes, *shares),
                short(released["memory_bytes"] / 1e9),
            ]
        )
    heads = ["GPUs", "pairs a GPU", "N", "kernels, ms", "collectives, ms", "sent, GB", "memory, GB"]
    heads += ["OTTER", "ViT-B/16", "local", "InfoNCE", "released", "its memory, GB"]
    return markdown.table(heads, lines)


def threshold_table(rows: list[dict[str, Any]]) -> str:
    """N from which on a loss takes more than 5 % and more than 20 % of a step."""
    lines = []
    for row in rows:
        found = [" / ".join(f"{pairs:,}" if pairs else "-" for pairs in row[scheme]) for scheme in SCHEMES]
        lines.append([row["chip"], row["network"], row["tower"], *found])
    heads = ["OTTER" if scheme == "global" else scheme for scheme in SCHEMES]
    return markdown.table(["chip", "network", "tower", *heads], lines)
