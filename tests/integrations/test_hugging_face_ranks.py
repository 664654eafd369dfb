"""Two gloo processes under accelerate train as one process with the whole batch, in both of Hugging Face's trainers."""

import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn

from docs.examples.sentence_transformers import load_names
from otter_losses import EMATeacher, OTTERLoss, SigLIPLoss
from otter_losses.integrations.sentence_transformers import CachedPairRankingLoss, PairRankingLoss
from otter_losses.losses.base import PairLoss
from tests.helpers.processes import run
from tests.integrations import test_sentence_transformers as sentences
from tests.integrations import test_transformers as clips

pytestmark = clips.pytestmark

WORLD, STEPS, PAIRS = 2, 2, 32
CASES: dict[str, dict[str, Any]] = {
    "clip, otter": {},
    "clip, otter, accumulated": {"gradient_accumulation_steps": 2},
    "clip, otter, alpha": {"gradient_accumulation_steps": 2},
    "clip, otter, taught": {},
    "clip, otter, taught, resumed": {"save_strategy": "steps", "save_steps": 1},
    "siglip, otter, some unused": {"ddp_find_unused_parameters": True},
    "siglip, otter, all used": {"ddp_find_unused_parameters": False},
    "siglip, siglip": {},
    "sentences": {},
    "sentences, accumulated": {"gradient_accumulation_steps": 2},
    "sentences, alpha": {},
    "sentences, cached": {},
    "sentences, cached, alpha, accumulated": {"gradient_accumulation_steps": 2},
}
"""A model, and what its trainer is told beyond the common."""


def start(case: str, bert: Path) -> nn.Module:
    model: nn.Module = sentences.make_model(bert) if "sentences" in case else clips.make_model(case.split(",")[0])
    return model


def train(case: str, bert: Path, folder: str, batch: int) -> dict[str, Any]:
    """A few steps and an evaluation."""
    model = start(case, bert)
    loss: PairLoss = SigLIPLoss() if case == "siglip, siglip" else OTTERLoss()
    options: dict[str, Any] = {
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "max_steps": STEPS,
        **({"ddp_backend": "gloo"} if dist.is_initialized() else {}),
        **CASES[case],
    }
    alpha = torch.linspace(0.05, 0.5, PAIRS).tolist()
    if "sentences" in case:
        labels = {"label": alpha} if "alpha" in case else {}
        kind: Any = partial(CachedPairRankingLoss, mini_batch_size=3) if "cached" in case else PairRankingLoss
        wrapped = kind(model, loss, labels="alpha" if labels else None)
        trainer = sentences.make_trainer(model, {**load_names(PAIRS), **labels}, folder, wrapped, **options)
    else:
        teacher = EMATeacher(model, decay=0.5) if "taught" in case else None
        pairs: list[dict[str, Any]] = clips.make_pairs(PAIRS)
        if "alpha" in case:
            pairs = [{**pair, "alpha": believed} for pair, believed in zip(pairs, alpha, strict=True)]
        trainer = clips.make_trainer(model, folder, loss=loss, teacher=teacher, pairs=pairs, **options)
    with patch("torch.save", wraps=torch.save) as save:
        trainer.train()
    written = sum(str(call.args[1]).endswith("teacher.pt") for call in save.call_args_list)
    if "resumed" in case:
        model = start(case, bert)
        with torch.no_grad():
            model.logit_scale.add_(1.0)  # type: ignore[operator]
        teacher = EMATeacher(model, decay=0.5)
        trainer = clips.make_trainer(model, folder, loss=loss, teacher=teacher, pairs=pairs, **options)
        trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-1")
    return {
        "moved": moved(case, bert, model),
        "teacher": clips.parameters_of(trainer.teacher) if "taught" in case else {},
        "eval_loss": trainer.evaluate()["eval_loss"],
        "world_size": loss.world_size,
        "written": written,
    }


def moved(case: str, bert: Path, model: nn.Module) -> dict[str, torch.Tensor]:
    before, after = clips.parameters_of(start(case, bert)), clips.parameters_of(model)
    return {name: before[name] - after[name] for name in before}


def work(rank: int, world: int, bert: Path, folder: str) -> dict[str, Any]:
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "OMP_NUM_THREADS": 1}
    os.environ.update({name: str(value) for name, value in launched.items()})  # as torchrun does
    return {case: train(case, bert, folder, clips.BATCH) for case in CASES}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentences.save_model(load_names(PAIRS), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def ranks(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes got."""
    folder = tmp_path_factory.mktemp("ranks")
    return run(work, WORLD, folder, bert, str(folder))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_the_whole_batch(
    case: str, ranks: list[dict[str, Any]], bert: Path, tmp_path: Path
) -> None:
    alone = train(case, bert, str(tmp_path), WORLD * clips.BATCH)
    for results in ranks:
        assert results[case]["world_size"] == WORLD
        clips.check_same(results[case]["moved"], alone["moved"], 1e-7)
        assert results[case]["eval_loss"] == pytest.approx(alone["eval_loss"], rel=1e-6)
        if "taught" in case:
            clips.check_same(results[case]["teacher"], alone["teacher"], 1e-7)


def test_a_resumed_run_is_the_run_in_one_go(ranks: list[dict[str, Any]]) -> None:
    """And only the first process writes the teacher, at each of two steps."""
    for results in ranks:
        resumed, whole = (results[case] for case in ("clip, otter, taught, resumed", "clip, otter, taught"))
        clips.check_same(resumed["moved"], whole["moved"], 1e-10)
        clips.check_same(resumed["teacher"], whole["teacher"], 1e-10)
    assert [results["clip, otter, taught, resumed"]["written"] for results in ranks] == [STEPS, 0]
