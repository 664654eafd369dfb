"""The rows of `benchmarks.gpu` as Markdown."""

from typing import Any

from benchmarks import markdown
from benchmarks.markdown import short, span
from benchmarks.roofline.ceilings import chip
from benchmarks.roofline.chips import Chip
from benchmarks.roofline.work import Work
from benchmarks.speed import asked, lineup
from benchmarks.speed.ledger import Key, Ledger, median
from benchmarks.speed.plan import EPSILON, MODES, ROUNDS, Cell
from benchmarks.speed.rivals import NOTES

RELEASED = "released OTTER"


def _bases(name: str) -> tuple[str, str]:
    """What a loss's ratios are taken against: the eager loss of its kind, and the released arithmetic."""
    return "eager SigLIP" if "siglip" in name.lower() else "eager ClipLoss", RELEASED


def report(ledger: Ledger) -> str:
    """All tables that there are rows for."""
    about = ledger.about
    machine = markdown.heading(about.get("machine", {}))
    device = _chip(ledger)
    parts = [
        f"# GPU benchmark\n\n`python -m benchmarks.gpu` on {machine}; {about.get('seconds', '?')} s.",
        _ceilings(ledger, device),
        asked.table(ledger),
        *_losses(ledger, device),
        _targets(ledger),
        _sinkhorn(ledger),
        *_profiles(ledger),
        _left_out(ledger),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _chip(ledger: Ledger) -> Chip | None:
    row = next((row for row in ledger.of("ceilings") if row["status"] == "ok"), None)
    return chip(row) if row else None


def _ceilings(ledger: Ledger, device: Chip | None) -> str:
    if device is None:
        return "The device's ceilings were not measured, so nothing is held against them."
    row = ledger.of("ceilings")[0]
    products = ", ".join(
        f"{_of(name)} {rate / 1e12:,.3g} TFLOP/s" for name, rate in row.items() if name.endswith("operations_per_s")
    )
    return f"Ceilings measured in this run: copy {device.bandwidth / 1e12:.3g} TB/s (read + written); products {products}."


def _of(name: str) -> str:
    return name.removesuffix("_operations_per_s")


def _losses(ledger: Ledger, device: Chip | None) -> list[str]:
    rows = ledger.of("losses")
    parts = []
    for mode, width in dict.fromkeys((row["mode"], row["width"]) for row in rows):
        chosen = [row for row in rows if (row["mode"], row["width"]) == (mode, width) and row["status"] == "ok"]
        if chosen:
            parts.append(f"## {MODES[mode].words}, D = {width}\n\n{_loss_table(ledger, chosen, device)}")
    if parts:
        parts.insert(
            0,
            "Milliseconds, medians (interquartile range over the median). *Forward*, *step* (forward + backward): by the clock, "
            "the host's work included. *Device*: the step replayed as a CUDA graph, without the host. *Eager / this*, "
            "*released / this*: of steps by the clock; eager is eager SigLIP for SigLIP's rows, eager ClipLoss for all others. "
            "*Derived*: the least that counting allows at the ceilings above (`benchmarks.floors`), where the products' blocks "
            "stay in the cache - where they do not. *Error*: of the gradient, in norm, against float64 on the same features; in "
            "brackets the error of an exact gradient rounded to their dtype.",
        )
    return parts


def _loss_table(ledger: Ledger, rows: list[dict[str, Any]], device: Chip | None) -> str:
    lines = []
    for row in sorted(rows, key=lambda row: row["pairs"]):
        n, ms = row["pairs"], row["step"]["median_ms"]
        bases = [median(ledger.rows.get(Key("losses", n, row["width"], row["mode"], base))) for base in _bases(row["name"])]
        derived = _derived(row, device)
        reached = median(_graph(ledger, row)) or ms
        cells = [
            f"{n:,}",
            row["name"],
            short(row["forward"]["median_ms"]),
            _spread(row["step"]),
            _device(ledger, row),
            "" if "peak_bytes" not in row else f"{row['peak_bytes'] / 2**20:,.0f}",
            *("" if base is None else f"{base / ms:.2f}" for base in bases),
            span(*derived) if derived else "",
            f"{reached / derived[0]:.1f}" if derived else "",
            _error(ledger, row),
        ]
        lines.append(cells)
    heads = ["N", "loss", "forward", "step", "device", "peak, MiB", "eager / this", "released / this", "derived"]
    return markdown.table([*heads, "device / derived", "error"], lines)


def _spread(timing: dict[str, Any]) -> str:
    return f"{short(timing['median_ms'])} ({timing['spread']:.0%})"


def _beside(ledger: Ledger, group: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row of another group about the same contender."""
    return ledger.rows.get(Key(group, row["pairs"], row["width"], row["mode"], row["name"]), {"status": "not run"})


def _graph(ledger: Ledger, row: dict[str, Any]) -> dict[str, Any]:
    return _beside(ledger, f"{row['group']}, graph", row)


def _device(ledger: Ledger, row: dict[str, Any]) -> str:
    found = _graph(ledger, row)
    return _spread(found["replay"]) if found["status"] == "ok" else ""


def _error(ledger: Ledger, row: dict[str, Any]) -> str:
    found = _beside(ledger, "accuracy", row)
    return f"{found['gradient_error']:.1e} ({found['rounding']:.0e})" if found["status"] == "ok" else ""


def _derived(row: dict[str, Any], device: Chip | None) -> tuple[float, float] | None:
    """Milliseconds with blocks in the cache and without."""
    cell = Cell("headline", row["pairs"], row["width"], row["mode"])
    known = [*lineup.headline(cell), *lineup.others(cell)]
    contender = next((found for found in known if found.name == row["name"] and found.floor), None)
    if contender is None or device is None:
        return None
    work = Work(row["pairs"], row["width"], row["mode"] != "float32", contender.max_memory)
    return work.milliseconds(contender.floor, device, True), work.milliseconds(contender.floor, device, False)


def _targets(ledger: Ledger) -> str:
    title = "## Targets alone: both problems, N x N matrices written, float32"
    return _transport(ledger, "targets", "released targets", title)


def _sinkhorn(ledger: Ledger) -> str:
    title = f"## Transport alone: batches of problems of N x N, {ROUNDS} rounds, epsilon {EPSILON}, float32"
    return _transport(ledger, "sinkhorn", "a loop", title)


def _transport(ledger: Ledger, group: str, base: str, title: str) -> str:
    rows = [row for row in ledger.of(group) if row["status"] == "ok"]
    if not rows:
        return ""
    lines = []
    for row in sorted(rows, key=lambda row: row["pairs"]):
        n, ms = row["pairs"], row["forward"]["median_ms"]
        least = median(ledger.rows.get(Key(group, n, row["width"], row["mode"], base)))
        count = row["width"] if group == "sinkhorn" else 1
        peak = f"{row['peak_bytes'] / (4 * count * n * n):.1f}" if "peak_bytes" in row else ""
        gain = "" if least is None else f"{least / ms:.2f}"
        lines.append([f"{n:,}", str(row["width"]), row["name"], _spread(row["forward"]), _device(ledger, row), peak, gain])
    wide = "problems" if group == "sinkhorn" else "D"
    heads = ["N", wide, "what", "ms", "device", "peak, its matrices in float32", f"{base} / this"]
    return f"{title}\n\n{markdown.table(heads, lines)}"


def _profiles(ledger: Ledger) -> list[str]:
    rates = next(iter(ledger.of("ceilings")), {})
    parts = []
    for row in ledger.of("profile"):
        if row["status"] != "ok":
            continue
        kernels, products = [], []
        for kernel in row["kernels"]:
            moved = [""] * 3
            if "bytes" in kernel:
                rate = kernel["bytes_per_s"]
                moved = [short(kernel["bytes"] / 1e9), short(rate / 1e12), _share(rate, rates.get("copy_bytes_per_s"))]
            name = kernel["kernel"].replace("|", "\\|")[:70]
            kernels.append([f"`{name}`", str(kernel["calls"]), short(kernel["ms"]), f"{kernel['share']:.0%}", *moved])
        for product in row["products"]:
            rate = product["operations_per_s"]
            share = _share(rate, rates.get("bfloat16_operations_per_s"))
            products.append([product["product"], str(product["calls"]), short(product["ms"]), short(rate / 1e12), share])
        heading = f"## Where the time goes: {row['name']}, N = {row['pairs']:,}, {MODES[row['mode']].words}, D = {row['width']}"
        total = f"{short(row['device_ms'])} ms on the device in {row['launches']} launches, forward + backward."
        of_kernels = ["kernel", "calls", "ms", "share", "bytes it must move, GB", "TB/s", "of the copy's"]
        of_products = ["product", "calls", "ms", "TFLOP/s", "of the bf16 ceiling"]
        tables = markdown.table(of_kernels, kernels), markdown.table(of_products, products)
        parts.append("\n\n".join((heading, total, *tables)))
    return parts


def _share(rate: float, ceiling: float | None) -> str:
    return f"{rate / ceiling:.0%}" if ceiling else ""


def _left_out(ledger: Ledger) -> str:
    """What has no number, why, and what to know of other projects' rows."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for row in ledger.rows.values():
        if row["status"] != "ok":
            where = f"{row['group']} at {row['pairs']:,}, {row['mode']}, D = {row['width']}" if row["pairs"] else row["group"]
            reasons.setdefault(row["status"], {}).setdefault(row["name"], []).append(where)
    lines = [
        f"- {status}: " + "; ".join(f"*{name}* ({' | '.join(where)})" for name, where in names.items())
        for status, names in reasons.items()
    ]
    notes = [f"- {name}: {note}" for name, note in NOTES.items()]
    found = ["## No number\n\n" + "\n".join(lines)] if lines else []
    return "\n\n".join([*found, "## About other projects' rows\n\n" + "\n".join(notes)])
