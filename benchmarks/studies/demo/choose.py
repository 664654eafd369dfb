"""How the learning rate of the demo was chosen: on the validation concepts alone, with seeds that the demo does not report.

``python -m benchmarks.demo.choose`` prints InfoNCE's hit@10 on the validation pictures; the best rate is used for every loss.
"""

from statistics import mean

from .__main__ import default_cache
from .pairs import list_pairs
from .parallel import default_jobs, run_tasks
from .pipeline import load_problem
from .report import table
from .train import BASELINE, Run, train

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = (100, 101, 102)
NOISES = (0.0, 0.4)


def main() -> None:
    pairs = list_pairs()
    problem, _ = load_problem(pairs, default_cache(), default_jobs())
    runs = [Run(BASELINE, noise, seed, learning_rate=rate) for rate in RATES for noise in NOISES for seed in SEEDS]
    outcomes = run_tasks(train, problem, runs, jobs=default_jobs(), label="training", unit="run")
    rows = []
    for rate in RATES:
        of_rate = [outcome for outcome in outcomes if outcome.run.learning_rate == rate]
        scores = [mean(outcome.validation[10] for outcome in of_rate if outcome.run.noise == noise) for noise in NOISES]
        rows.append([f"{rate:g}", *(f"{score:.1f}" for score in (*scores, mean(scores)))])
    print(table(["learning rate", *(f"{noise:.0%} shuffled" for noise in NOISES), "mean"], rows))


if __name__ == "__main__":
    main()
