"""One training run of a setting: heads over frozen features, or the whole image encoder, with one of the losses."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.hit_at_k import ranks_after_ties
from benchmarks.studies.data.noise import shuffle_captions
from benchmarks.studies.table.problem import HeldOut, Problem
from benchmarks.studies.table.settings import SETTINGS, Setting
from benchmarks.studies.training.fit import fit
from benchmarks.studies.training.heads import WIDTH, TwoHeads
from benchmarks.studies.training.losses import METHODS, teacher_of
from otter_losses import EMATeacher

EPOCHS = 10
HIDDEN = 768
LEARNING_RATES = {1: 1e-3, 2: 3e-4}
"""By the layers of the head; chosen with `choose`."""
ENCODER_RATE = 0.1
"""Of a fine-tuned encoder, as a share of the heads'."""
SCORED_AT_ONCE = 256


@dataclass(frozen=True)
class Run:
    setting: str
    method: str
    seed: int
    epochs: int = EPOCHS
    learning_rate: float | None = None
    """By default that of the setting's head."""
    finetune: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Outcome:
    """The rank of the true name among the names, 1 the best, for every picture of each validation and test set."""

    run: Run
    validation: dict[str, NDArray[np.int32]] = field(repr=False)
    test: dict[str, NDArray[np.int32]] = field(repr=False)
    logit_scale: float


def train(problem: Problem, run: Run) -> Outcome:
    """Trains for all epochs and scores the last state: no checkpoint is chosen."""
    setting = SETTINGS[run.setting]
    method = METHODS[run.method]
    model = make_model(problem, setting, run).to(run.device)
    teacher = teacher_of(model) if method.teacher else None
    fit_setting(problem, run, model, method.make(), teacher)
    with torch.inference_mode():
        validation, test = (
            {name: score(model, problem, held_out, run.device) for name, held_out in tests.items()}
            for tests in (problem.validation, problem.test)
        )
    return Outcome(run, validation, test, model.log_scale.exp().item())


def make_model(problem: Problem, setting: Setting, run: Run) -> TwoHeads:
    torch.manual_seed(run.seed)
    encoder: nn.Module = nn.Identity()
    width = problem.images.shape[-1]
    if run.finetune:
        from benchmarks.studies.data.encoders import TrainableImageEncoder

        encoder = TrainableImageEncoder()
        width = encoder.width
    layers: list[nn.Module] = [nn.Linear(width, WIDTH)]
    if setting.layers == 2:
        layers = [nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)]
    return TwoHeads(nn.Sequential(encoder, *layers), problem.captions.shape[1])


def fit_setting(problem: Problem, run: Run, model: TwoHeads, loss: nn.Module, teacher: EMATeacher | None) -> None:
    """Trains on the setting's pairs."""
    setting = SETTINGS[run.setting]
    pairs = torch.tensor(problem.training[run.setting])
    given = pairs[shuffle_captions(len(pairs), setting.shuffled, run.seed)]
    rate = run.learning_rate or LEARNING_RATES[setting.layers]
    encoder = list(model.image[0].parameters())  # type: ignore[index]
    heads = [*model.image[1:].parameters(), *model.text.parameters(), *_scales(model)]  # type: ignore[index]
    groups = [{"params": heads, "lr": rate}, {"params": encoder, "lr": ENCODER_RATE * rate}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]])
    images, texts = (torch.from_numpy(each).to(run.device) for each in (problem.images, problem.texts(setting)))
    fit(model, loss, teacher, optimizer, images, texts, pairs, given, run.epochs, run.seed)


def _scales(model: TwoHeads) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if "." not in name]


def score(model: TwoHeads, problem: Problem, test: HeldOut, device: str = "cpu") -> NDArray[np.int32]:
    """The rank of each picture's true name."""
    model.eval()
    _, names, *_ = model(_pictures(problem, test.pictures[:1], device), torch.from_numpy(test.names).to(device))
    found = []
    for start in range(0, len(test.pictures), SCORED_AT_ONCE):
        pictures = _pictures(problem, test.pictures[start : start + SCORED_AT_ONCE], device)
        labels = torch.tensor(test.labels[start : start + SCORED_AT_ONCE], device=device)
        similarity = nn.functional.normalize(model.image(pictures), dim=-1) @ names.T
        found.append(ranks_after_ties(similarity, labels).int().cpu().numpy())
    return np.concatenate(found)


def _pictures(problem: Problem, rows: list[int], device: str) -> Tensor:
    return torch.from_numpy(problem.images[rows]).to(device)
