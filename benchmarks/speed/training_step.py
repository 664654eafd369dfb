"""What the loss is of a training step: an open_clip model, forward, backward and optimizer, with its own losses and with ours.

    python -m benchmarks.training_step                            # ViT-B/32 at N = 512 and 4,096; about a minute on an H100
    python -m benchmarks.training_step --device cpu --model tiny --pairs 16 --output somewhere    # to try the machinery

As open_clip trains: bfloat16 autocast around model and loss, AdamW, synthetic images and token ids; from N = 1,024 on with
activation checkpointing. All losses take turns on one model. Milliseconds are medians by the clock, the device idle before and
after; *beyond none* is what the step takes longer than with a loss of N products, *alone* the loss on features that are there.
Writes ``training_step.{json,md}`` to the folder given. Needs open_clip: ``pip install open_clip_torch``.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import markdown
from benchmarks.markdown import short
from benchmarks.measure import RESULTS, Timing, machine, once, present
from benchmarks.speed.attempts import reason
from otter_losses import InfoNCELoss, OTTERLoss, SigLIPLoss

CHECKPOINTED_FROM = 1024
NONE = "none"
"""The loss that costs next to nothing."""
TINY = "tiny"

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def open_clip() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        raise SystemExit("open_clip is not installed; its model is trained here: pip install open_clip_torch") from error
    return open_clip


def model_of(name: str) -> Any:
    """An open_clip model with random weights; "tiny" is one to try this with."""
    if name != TINY:
        return open_clip().create_model(name)
    clip = open_clip().model
    vision = clip.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=16, image_size=32)
    return clip.CLIP(16, vision, clip.CLIPTextCfg(context_length=8, vocab_size=64, width=32, heads=2, layers=1))


def losses() -> dict[str, Loss]:
    """Of image features, text features and the scale. SigLIP without a bias, which no model here has."""
    clip, siglip = open_clip().loss.ClipLoss(), open_clip().loss.SigLipLoss()
    return {
        NONE: lambda x, y, scale: scale * (x * y).sum(-1).mean(),
        "open_clip ClipLoss": clip,
        "InfoNCELoss": InfoNCELoss(),
        "OTTERLoss, own teacher": OTTERLoss(),
        "open_clip SigLipLoss": lambda x, y, scale: siglip(x, y, scale, None),
        "SigLIPLoss": SigLIPLoss(),
    }


class Training:
    """One model, its optimizer, and one batch."""

    def __init__(self, name: str, pairs: int, device: str) -> None:
        self.device = device
        self.model = model_of(name).to(device).train()
        if pairs >= CHECKPOINTED_FROM:
            self.model.set_grad_checkpointing()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=device != "cpu")
        height, width = self.model.visual.image_size
        generator = torch.Generator(device).manual_seed(0)
        self.images = torch.randn(pairs, 3, height, width, generator=generator, device=device)
        ids = (pairs, self.model.context_length)
        self.texts = torch.randint(1, self.model.vocab_size, ids, generator=generator, device=device)

    def autocast(self) -> torch.autocast:
        return torch.autocast(torch.device(self.device).type, torch.bfloat16)

    def step(self, loss: Loss) -> None:
        self.optimizer.zero_grad()
        with self.autocast():
            value = loss(*self.model(self.images, self.texts))
        value.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def alone(self, loss: Loss) -> Callable[[], object]:
        """The loss on the features that it is given in a step, forward and backward."""
        with self.autocast(), torch.no_grad():
            features = [each.detach() for each in self.model(self.images, self.texts)]
        given = [each.requires_grad_() for each in features]

        def run() -> object:
            with self.autocast():
                value = loss(*given)
            return torch.autograd.grad(value, given)

        return run


def measure(name: str, pairs: int, device: str, repetitions: int, deadline: float) -> list[dict[str, Any]]:
    """A row for each loss: at least one repetition after one to warm up, more until the deadline."""
    training = Training(name, pairs, device)
    rows: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable[[], object]] = {}
    for each, loss in losses().items():
        rows[each] = {"pairs": pairs, "loss": each, "status": "ok"}
        try:
            for _ in range(2):  # the first of all makes the optimizer's state
                training.step(loss)
            alone = training.alone(loss)
            alone()
        except RuntimeError as error:
            rows[each]["status"] = reason(error)
            continue
        rows[each]["alone"] = Timing(tuple(once(alone, device) for _ in range(repetitions))).row()
        steps[each] = partial(training.step, loss)
    times: dict[str, list[float]] = {each: [] for each in steps}
    for count in range(repetitions):
        for each, step in steps.items():
            if count == 0 or time.time() < deadline:
                times[each].append(once(step, device))
    for each, taken in times.items():
        rows[each]["step"] = Timing(tuple(taken)).row()
    return list(rows.values())


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    bares = {row["pairs"]: row["step"]["median_ms"] for row in rows if row["loss"] == NONE and row["status"] == "ok"}
    for row in rows:
        cells = [f"{row['pairs']:,}", row["loss"]]
        if row["status"] != "ok":
            lines.append([*cells, row["status"], "", "", ""])
            continue
        step, alone = row["step"]["median_ms"], row["alone"]["median_ms"]
        bare = bares.get(row["pairs"])
        beyond = ["", ""] if bare is None or row["loss"] == NONE else [short(step - bare), f"{(step - bare) / step:.1%}"]
        lines.append([*cells, f"{short(step)} ({row['step']['spread']:.0%})", *beyond, short(alone)])
    return markdown.table(["N", "loss", "step, ms", "beyond none, ms", "share", "alone, ms"], lines)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-32", help=f"a name of open_clip's, or {TINY}")
    parser.add_argument("--pairs", type=int, nargs="+", default=[512, 4096], help="batch sizes N")
    parser.add_argument("--device", type=present, default="cuda")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--budget-seconds", type=float, default=60, help="after it a size has one repetition")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to write to")
    return parser


def main() -> None:
    options = arguments().parse_args()
    open_clip()
    deadline = time.time() + options.budget_seconds
    about, rows = machine(options.device), list[dict[str, Any]]()
    for pairs in options.pairs:
        rows += measure(options.model, pairs, options.device, options.repetitions, deadline)
        text = (
            f"# The loss in a training step\n\n{options.model}, bfloat16 autocast, AdamW; {markdown.heading(about)}. "
            "Medians by the clock (interquartile range over the median).\n\n"
            f"{table(rows)}\n"
        )
        markdown.write(options.output / "training_step", text, {"machine": about, "model": options.model, "rows": rows})
