"""How the learning rate of the demo was chosen: on the validation concepts alone, with seeds that the demo does not report.

``python -m benchmarks.demo.choose`` prints InfoNCE's hit@10 on the validation pictures; the best rate is used for every loss.
"""

from statistics import mean

from benchmarks.studies.command import cores, default_cache
from benchmarks.studies.data.installed.pairs import list_pairs
from benchmarks.studies.demo.problem import load_problem
from benchmarks.studies.demo.run import Run, train
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.report import table
from benchmarks.studies.training.losses import BASELINE

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = (100, 101, 102)
NOISES = (0.0, 0.4)


def main() -> None:
    pairs = list_pairs()
    problem, _ = load_problem(pairs, default_cache("demo"), cores())
    runs = [Run(BASELINE, noise, seed, learning_rate=rate) for rate in RATES for noise in NOISES for seed in SEEDS]
    outcomes = run_tasks(train, problem, runs, jobs=cores(), label="training", unit="run")
    rows = []
    for rate in RATES:
        of_rate = [outcome for outcome in outcomes if outcome.run.learning_rate == rate]
        scores = [mean(outcome.validation[10] for outcome in of_rate if outcome.run.noise == noise) for noise in NOISES]
        rows.append([f"{rate:g}", *(f"{score:.1f}" for score in (*scores, mean(scores)))])
    print(table(["learning rate", *(f"{noise:.0%} shuffled" for noise in NOISES), "mean"], rows))


if __name__ == "__main__":
    main()
