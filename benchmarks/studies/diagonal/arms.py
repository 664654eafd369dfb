"""Does the released code's wrong diagonal matter? ``python -m benchmarks.realpairs.diagonal``; see README.md beside this file.

Over ranks the released code takes the wrong entries out of the transport on every rank but the first, and sends no gradient
through what it gathered. `OneProcess` has `otter_losses.released` compute all ranks' rows in one process: the gradient of the
mean over the rows is the one that DDP's mean over the ranks gives.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.demo.__main__ import positive
from benchmarks.demo.evaluate import KS, hits
from benchmarks.demo.noise import shuffle_captions
from benchmarks.demo.parallel import run_tasks
from benchmarks.demo.report import table
from benchmarks.demo.train import BATCH, EMA_DECAY, MAX_SCALE, TwoHeads
from benchmarks.measure import machine
from otter_losses import EMATeacher, OTTERLoss, released
from otter_losses.ops.world import World

from .__main__ import add_common, check_packages
from .features import load_collection
from .problem import Problem, build_problem
from .settings import SETTINGS, TESTS
from .train import EPOCHS, Run, fit_setting, make_model, score

RANKS = 8
ALPHA, EPSILON, ITERATIONS, GAMMA = 0.5, 0.15, 5, 1.0
CHOSEN = ("all", "40 % shuffled")
INITIAL_LOG_SCALE = 3.9
"""Of both temperatures in the released code, whose exponential is held in [1, MAX_SCALE]."""


@dataclass(frozen=True)
class OneProcess(World):
    """All ranks' pairs in this process: what is gathered is there already, and carries no gradient as over processes."""

    def gather(self, own: Tensor) -> Tensor:
        return own.detach()


def official_over_ranks(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    second: Tensor,
    dist_image_features: Tensor,
    dist_text_features: Tensor,
    counts: tuple[int, ...],
) -> Tensor:
    """``OTTERLoss.official`` as ranks that bring so many pairs each train with it; with one rank its diagonal is right."""
    parts = released.losses(
        *(x, y, dist_image_features, dist_text_features, scale, second, EPSILON, ITERATIONS, GAMMA, GAMMA),
        OneProcess(counts=counts),
    )
    contrastive, distill = (part.mean() for part in parts)
    return ALPHA * contrastive + (1 - ALPHA) * distill


def shares(pairs: int, ranks: int) -> tuple[int, ...]:
    """How many pairs each rank brings."""
    return tuple(len(part) for part in torch.empty(pairs).tensor_split(ranks))


class _Official(nn.Module):
    """An official arm's loss, from the model's features and two scales; `ranks` is None for the loss of one process."""

    def __init__(self, ranks: int | None, right: bool) -> None:
        super().__init__()
        self.ranks, self.right = ranks, right
        self.loss = OTTERLoss.official(alpha=ALPHA, epsilon=EPSILON, iterations=ITERATIONS, gamma_image=GAMMA, gamma_text=GAMMA)

    def forward(self, x: Tensor, y: Tensor, scale: Tensor, second: Tensor, **teacher: Tensor) -> Tensor:
        teacher = {name: teacher[name] for name in ("dist_image_features", "dist_text_features")}
        if self.ranks is None:
            value: Tensor = self.loss(x, y, scale, distill_logit_scale=second, **teacher)
            return value
        counts = shares(len(x), 1 if self.right else self.ranks)
        return official_over_ranks(x, y, scale, second, counts=counts, **teacher)


class TwoTemperatures(TwoHeads):
    """The heads with the released code's second temperature, for the distillation."""

    def __init__(self, model: TwoHeads) -> None:
        nn.Module.__init__(self)
        self.image, self.text = model.image, model.text
        self.log_scale = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))
        self.log_second = nn.Parameter(torch.tensor(INITIAL_LOG_SCALE))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, ...]:
        return (*super().forward(images, texts), self.log_second.exp())

    @torch.no_grad()
    def clamp_scale(self) -> None:
        for scale in (self.log_scale, self.log_second):
            scale.clamp_(0.0, math.log(MAX_SCALE))


ARMS = {
    "paper": None,
    "official, 1 process": partial(_Official, None, True),
    f"official, {RANKS} ranks, right diagonal": partial(_Official, RANKS, True),
    f"official, {RANKS} ranks": partial(_Official, RANKS, False),
}
STEPS = (("8 ranks less paper", 3, 0), ("the diagonal", 3, 2), ("the gradient lost in gathering", 2, 1), ("the rest", 1, 0))
"""Which arm less which."""


@dataclass(frozen=True)
class Trained:
    """hit@k by test set, and the mass that the wrong diagonals would give back to each given pair of the last batch."""

    run: Run
    test: dict[str, dict[int, float]]
    given_back: NDArray[np.float32]


def train_arm(problem: Problem, run: Run) -> Trained:
    """`run.method` is an arm."""
    model = make_model(problem, SETTINGS[run.setting], run)
    arm = ARMS[run.method]
    if arm is not None:
        model = TwoTemperatures(model)
    teacher = EMATeacher(model, decay=EMA_DECAY, warmup=True)
    fit_setting(problem, run, model, OTTERLoss() if arm is None else arm(), teacher)
    with torch.inference_mode():
        test = {name: score(model, problem, test) for name, test in problem.test.items()}
        mass = given_back(*_batch(problem, run, teacher))
    return Trained(run, {name: {k: hits(ranks, k) for k in KS} for name, ranks in test.items()}, mass.numpy())


def _batch(problem: Problem, run: Run, teacher: EMATeacher) -> tuple[Tensor, Tensor]:
    """The teacher's features of one training batch, with the captions of the training."""
    setting = SETTINGS[run.setting]
    pairs = torch.tensor(problem.training[run.setting])
    given = pairs[shuffle_captions(len(pairs), setting.shuffled, run.seed)]
    rows = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(run.seed))[:BATCH]
    images, texts = torch.from_numpy(problem.images), torch.from_numpy(problem.texts(setting))
    v, t, *_ = teacher(images[pairs[rows]], texts[given[rows]])
    return v, t


def given_back(v: Tensor, t: Tensor, ranks: int = RANKS) -> Tensor:
    """Share of each row's transported mass on its own pair in the released code, for the rows of all ranks but the first."""
    counts = shares(len(v), ranks)
    scores = GAMMA * (v @ v.T) + GAMMA * (t @ t.T) + v @ t.T
    return released.targets(scores, 100 * 2 * GAMMA, counts, EPSILON, ITERATIONS).diagonal()[counts[0] :]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.realpairs.diagonal",
        description="Trains OTTER as in the paper and as in the released code over 8 ranks of 64, with and without its mistakes.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seeds", type=positive, default=5, help="runs of each arm and setting")
    parser.add_argument("--epochs", type=positive, default=EPOCHS, help="length of each training run")
    add_common(parser)
    options = parser.parse_args(arguments)
    check_packages()
    problem = build_problem(load_collection(options.cache, options.jobs))
    started = time.perf_counter()
    runs = [Run(setting, arm, seed, options.epochs) for seed in range(options.seeds) for setting in CHOSEN for arm in ARMS]
    trained = run_tasks(train_arm, problem, runs, jobs=options.jobs, label="training", unit="run")
    facts = {
        "seeds": options.seeds,
        "epochs": options.epochs,
        "ranks": RANKS,
        "batch": BATCH,
        "seconds": round(time.perf_counter() - started, 1),
        "jobs": options.jobs,
        "machine": machine("cpu"),
        **problem.facts,
    }
    text = report(trained, facts)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "diagonal.md").write_text(text + "\n", encoding="utf-8")
    (options.output / "diagonal.json").write_text(json.dumps({**facts, "runs": [_row(one) for one in trained]}, indent=1) + "\n")
    print(f"\n{text}\n\nWritten to {options.output}/: diagonal.md, diagonal.json.")


def _row(trained: Trained) -> dict[str, Any]:
    scores = {f"{test} hit@{k}": round(value, 3) for test, by_k in trained.test.items() for k, value in by_k.items()}
    return {"setting": trained.run.setting, "arm": trained.run.method, "seed": trained.run.seed, **scores, **_mass(trained)}


def _mass(trained: Trained) -> dict[str, float]:
    low, middle, high = np.quantile(trained.given_back, [0.05, 0.5, 0.95])
    named = {"mean": trained.given_back.mean(), "5 %": low, "median": middle, "95 %": high}
    return {f"given back, {name}": round(float(value), 4) for name, value in named.items()}


def report(trained: Sequence[Trained], facts: dict[str, Any]) -> str:
    of = {(one.run.setting, one.run.method, one.run.seed): one for one in trained}
    seeds = range(facts["seeds"])
    arms = list(ARMS)
    scores, steps, masses = [], [], []
    for setting in CHOSEN:
        values = {
            (arm, test, k): [of[setting, arm, seed].test[test][k] for seed in seeds] for arm in arms for test in TESTS for k in KS
        }
        for arm in arms:
            cells = [f"{mean(values[arm, test, k]):.1f}{_deviation(values[arm, test, k])}" for test in TESTS for k in KS]
            scores.append([setting, arm, *cells])
            row = {name: mean(_mass(of[setting, arm, seed])[name] for seed in seeds) for name in _mass(trained[0])}
            masses.append([setting, arm, *(f"{value:.0%}" for value in row.values())])
        for name, ours, theirs in STEPS:
            pairs = [
                [a - b for a, b in zip(values[arms[ours], test, k], values[arms[theirs], test, k], strict=True)]
                for test in TESTS
                for k in KS
            ]
            over_all = [mean(seed) for seed in zip(*pairs, strict=True)]
            steps.append([setting, name, *(_with_interval(each) for each in (*pairs, over_all))])
    columns = [f"{test} @{k}" for test in TESTS for k in KS]
    machine = facts["machine"]
    notes = (
        f"Per cent, {facts['seeds']} seeds: mean ± standard deviation; differences seed by seed with the 95 % interval of the t "
        "distribution, which covers the noise of training, not the choice of test pictures, and is not corrected for their "
        'number. "Given back": the share of a row\'s transported mass that the wrong diagonals put on the given pair, for the '
        f"rows of ranks 2 to {facts['ranks']}, computed from the teacher that each arm ends with. {machine['device']}, torch "
        f"{machine['torch']}, commit {machine['commit']}; {facts['seconds']:.0f} s in {facts['jobs']} processes."
    )
    return "\n\n".join(
        (
            table(["setting", "arm", *columns], scores),
            table(["setting", "difference", *columns, "mean of the six"], steps),
            table(["setting", "teacher of", "given back, mean", "5 %", "median", "95 %"], masses),
            notes,
        )
    )


def _deviation(values: Sequence[float]) -> str:
    return f" ± {stdev(values):.1f}" if len(values) > 1 else ""


def _with_interval(values: Sequence[float]) -> str:
    from scipy.stats import t

    if len(values) < 2:
        return f"{mean(values):+.2f}"
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):+.2f} [{mean(values) - half:+.2f}, {mean(values) + half:+.2f}]"


if __name__ == "__main__":
    main()
