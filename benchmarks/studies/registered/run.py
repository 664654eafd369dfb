"""One training run of an arm under a condition, and the trust of a condition's pairs."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.hit_at_k import KS, hit_at_k
from benchmarks.studies.data.cache import Arrays, fingerprint, load_or_make
from benchmarks.studies.data.noise import shuffle_captions
from benchmarks.studies.registered.arms import ARMS, WEIGHT_DECAY, trust_given
from benchmarks.studies.registered.conditions import CONDITIONS, Condition
from benchmarks.studies.table.problem import Problem
from benchmarks.studies.table.run import LEARNING_RATES, Outcome, Run, make_model, score
from benchmarks.studies.training.fit import fit
from benchmarks.studies.training.heads import TwoHeads
from benchmarks.studies.training.losses import teacher_of
from otter_losses import audit
from otter_losses.audit import pair_trust


class Shared(NamedTuple):
    """What all runs of a study on these pairs need."""

    problem: Problem
    cache: Path


def given_pairs(problem: Problem, condition: Condition, seed: int) -> Tensor:
    """For each of the condition's pairs, by position, the one whose caption it has."""
    pairs = problem.training[condition.name]
    sources = [problem.sources[index] for index in pairs] if condition.within_source else None
    return torch.tensor(shuffle_captions(len(pairs), condition.shuffled, seed, sources))


def estimate_trust(problem: Problem, condition: Condition, seed: int, cache: Path) -> tuple[Tensor, float]:
    """`pair_trust` of the frozen features with the captions as given, at its defaults, and the seconds that it took.

    Computed once for all conditions and arms that share the pairs, by the audit's present code.
    """

    def estimate() -> Arrays:
        pairs = np.array(problem.training[condition.name])
        given = pairs[given_pairs(problem, condition, seed).numpy()]
        started = time.process_time()
        trust = pair_trust(problem.images[pairs], problem.texts(condition)[given]).trust
        return {"trust": trust.numpy(), "seconds": np.array(time.process_time() - started)}

    code = [file.read_text(encoding="utf-8") for file in sorted(Path(audit.__file__).parent.glob("*.py"))]
    origin = fingerprint(problem.facts["versions"], code, condition.data, seed)
    arrays, _ = load_or_make(cache / "trust" / f"{origin[:16]}.npz", origin, estimate)
    return torch.from_numpy(arrays["trust"]), float(arrays["seconds"])


def fitted(
    problem: Problem,
    condition: Condition,
    run: Run,
    loss: nn.Module,
    given: Tensor,
    per_pair: Mapping[str, Tensor],
    has_teacher: bool,
    start_scale: float,
    weight_decay: float = WEIGHT_DECAY,
    rows: Tensor | slice = slice(None),
) -> TwoHeads:
    """The heads of a run after all epochs, on all of the condition's pairs or some `rows` of them."""
    pairs = torch.tensor(problem.training[condition.name])
    model = make_model(problem, condition, run)
    with torch.no_grad():
        model.log_scale.fill_(math.log(start_scale))
    teacher = teacher_of(model) if has_teacher else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATES[condition.layers], weight_decay=weight_decay)
    images, texts = torch.from_numpy(problem.images), torch.from_numpy(problem.texts(condition))
    kept = {name: values[rows] for name, values in per_pair.items()}
    fit(model, loss, teacher, optimizer, images, texts, pairs[rows], pairs[given][rows], run.epochs, run.seed, kept)
    return model


def train(problem: Problem, run: Run, cache: Path) -> Outcome:
    """Trains for all epochs and scores the last state: no checkpoint is chosen."""
    model = model_of(problem, run, cache)
    with torch.inference_mode():
        validation, test = (
            {name: score(model, problem, held_out) for name, held_out in tests.items()}
            for tests in (problem.validation, problem.test)
        )
    return Outcome(run, validation, test, model.log_scale.exp().item())


def validation_mean(model: TwoHeads, problem: Problem) -> float:
    """Of hit@1, 5 and 10 over both validation sets, in per cent."""
    with torch.inference_mode():
        hits = [hit_at_k(score(model, problem, held_out), KS) for held_out in problem.validation.values()]
    return round(float(np.mean([value for by_k in hits for value in by_k.values()])), 3)


def model_of(problem: Problem, run: Run, cache: Path) -> TwoHeads:
    """The trained heads of an arm under a condition."""
    condition, arm = CONDITIONS[run.setting], ARMS[run.method]
    given = given_pairs(problem, condition, run.seed)
    per_pair = {}
    if arm.trust is not None:
        estimated, _ = estimate_trust(problem, condition, run.seed, cache)
        per_pair["trust"] = trust_given(arm.trust, estimated, given, run.seed)
    start_scale = arm.start_scale or condition.start_scale
    return fitted(problem, condition, run, arm.make(), given, per_pair, arm.teacher, start_scale, weight_decay=arm.weight_decay)
