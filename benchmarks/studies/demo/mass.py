"""Where transport sends the mass of wrong pairs: to captions that fit the picture, or to captions like the wrong one.

``python -m benchmarks.demo.mass`` trains the demo's OTTER with 40 % of the captions shuffled and asks of a
batch: how similar are the captions that get a wrong pair's mass to the given caption, which is wrong,
to the picture's own, and to a random one? Cosines of the frozen text encoder, weighted by the mass.
"""

from statistics import mean, stdev
from typing import Any

import torch
from torch.nn.functional import normalize

from benchmarks.markdown import write
from benchmarks.measure import RESULTS, machine
from benchmarks.studies.command import cores, default_cache
from benchmarks.studies.data.installed.pairs import list_pairs
from benchmarks.studies.data.noise import shuffle_captions
from benchmarks.studies.demo.matches import draw_probe
from benchmarks.studies.demo.problem import Problem, load_problem
from benchmarks.studies.demo.run import Outcome, Run, train
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.report import table
from benchmarks.studies.training.losses import EPSILON, ITERATIONS, OURS
from otter_losses.functional import otter_targets

NOISE, SEEDS, GAMMAS = 0.4, 5, (1.0, 0.0)
LIKE = ("the given, wrong caption", "the picture's own", "a random one")


def main() -> None:
    problem, _ = load_problem(list_pairs(), default_cache("demo"), cores())
    probe = draw_probe(len(problem.split.training))
    runs = [Run(OURS, NOISE, seed, probe=probe) for seed in range(SEEDS)]
    outcomes = run_tasks(train, problem, runs, jobs=cores(), label="training", unit="run")
    found = {gamma: [likeness(problem, outcome, gamma) for outcome in outcomes] for gamma in GAMMAS}
    rows = [
        [f"{gamma:g}", *(f"{mean(values):.3f} ± {stdev(values):.3f}" for values in zip(*of_gamma, strict=True))]
        for gamma, of_gamma in found.items()
    ]
    about: dict[str, Any] = machine("cpu")
    note = (
        f"Cosine of the captions that get a wrong pair's mass, weighted by it. {NOISE:.0%} shuffled, {SEEDS} seeds, mean ± "
        f"standard deviation. torch {about['torch']}, commit {about['commit']}."
    )
    text = f"{table(['gamma_text', *LIKE], rows)}\n\n{note}"
    write(RESULTS / "demo" / "mass", f"{text}\n", {"machine": about, "like": LIKE, "found": found})


def likeness(problem: Problem, outcome: Outcome, gamma_text: float) -> tuple[float, ...]:
    """Of the wrong pairs of the probe, means."""
    run = outcome.run
    assert outcome.probe_features is not None
    v, t = map(torch.from_numpy, outcome.probe_features)
    masses, _ = otter_targets(v, t, epsilon=EPSILON, iterations=ITERATIONS, gamma_text=gamma_text)
    training, rows = torch.tensor(problem.split.training), torch.tensor(run.probe)
    given = torch.tensor(shuffle_captions(len(training), run.noise, run.seed))[rows]
    texts = normalize(torch.from_numpy(problem.features.texts), dim=-1)
    said, own = texts[training[given]], texts[training[rows]]
    wrong = given != rows
    return tuple(
        float((masses[wrong] * (each[wrong] @ said.T)).sum(1).mean()) for each in (said, own, said.mean(0).expand_as(said))
    )


if __name__ == "__main__":
    main()
