"""What a configuration will take and what it should give: command, hours, table. Nothing here was measured."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reproduction.config import Config
from benchmarks.reproduction.models import PairModel
from benchmarks.reproduction.table import PAPER, PAPER_METRICS, report


@dataclass(frozen=True)
class Machine:
    """Devices alike, their peak, and the assumed share of it that training reaches (MFU)."""

    name: str
    devices: int
    peak: float
    share: float


PAPERS = Machine("V100 (fp16 tensor cores)", devices=8, peak=125e12, share=0.15)


def describe(config: Config, names: Sequence[str], overrides: Sequence[str], machine: Machine = PAPERS) -> str:
    """The command and the hours of a run on a machine, and the table that it belongs into."""
    settings = "".join(f" --set {shlex.quote(each)}" for each in overrides)
    return "\n\n".join(
        (
            f"On {machine.devices} x {machine.name}:",
            f"    torchrun --nproc-per-node {machine.devices} -m benchmarks.reproduction train {' '.join(names)}{settings} "
            "--data DATA --run RUN",
            hours(config, machine),
            row(config),
            report([]),
        )
    )


def forward_flops(config: Config) -> tuple[float, float]:
    """Floating-point operations of encoding one image, and one text of `max_tokens`; a multiply-add counts two.

    Example:
        >>> from benchmarks.reproduction.config import load
        >>> image, text = forward_flops(load(["otter"]))  # ResNet-50: 4.1 G multiply-adds
        >>> round(image / 1e9, 1)
        8.2
    """
    size = config.data.size
    with torch.device("meta"):
        model = PairModel(replace(config.model, pretrained=False)).eval()
        with FlopCounterMode(display=False) as image:
            model.encode_images(torch.zeros(1, 3, size, size))
        with FlopCounterMode(display=False) as text:
            model.text(input_ids=torch.zeros(1, config.model.max_tokens, dtype=torch.long))
    return float(image.get_total_flops()), float(text.get_total_flops())


def passes(config: Config, devices: int) -> int:
    """Forward passes that a step is worth: forward, a backward of twice that, the teacher's, and that of accumulation."""
    accumulates = config.train.batch > devices * config.train.chunk
    return 3 + config.loss.teacher + accumulates


def hours(config: Config, machine: Machine) -> str:
    """How long training takes, derived from operations and an assumed share of the peak."""
    if not config.data.pairs:
        return f"Hours: unknown, as the number of pairs of {config.data.name} is; see `images_per_second` in the log of a run."
    image, text = forward_flops(config)
    count = passes(config, machine.devices)
    pairs = config.train.epochs * (config.data.pairs // config.train.batch) * config.train.batch
    seconds = pairs * count * (image + text) / (machine.devices * machine.peak * machine.share)
    return (
        f"Hours: {seconds / 3600:.1f}, derived, not measured: {pairs:,} pairs x {count} forward passes (a backward pass counts "
        f"as two) x ({image / 1e9:.1f} GFLOP an image of {config.data.size} px + {text / 1e9:.1f} GFLOP a caption of "
        f"{config.model.max_tokens} tokens, the most there can be), over {machine.devices} x {machine.peak / 1e12:.0f} TFLOP/s "
        f"at an assumed {machine.share:.0%}. For that the loaders have to deliver {pairs / seconds:,.0f} images/s; where they "
        "cannot, the hours are theirs."
    )


def row(config: Config) -> str:
    """What the authors got with this loss, as far as `table` knows."""
    label = config.loss.label.removesuffix(" (official)")
    papers = Config()
    alike = (config.data.name, config.model.image, config.model.text) == (papers.data.name, papers.model.image, papers.model.text)
    if label not in PAPER or not alike:
        return f"Expected: unknown; the authors published no complete row for {config.loss.label!r} with these data and encoders."
    metrics = ", ".join(f"{bench} {metric} {value}" for (bench, metric), value in zip(PAPER_METRICS, PAPER[label], strict=True))
    return f"Expected: the authors' {label}, one run, in per cent: {metrics}."
