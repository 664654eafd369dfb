"""How the learning rates were chosen: on the validation concepts alone, with a seed that the table does not use.

``python -m benchmarks.realpairs.choose`` prints InfoNCE's hit@10 on the validation pictures; the best rate of each head serves
every loss.
"""

from statistics import mean

from benchmarks.hit_at_k import hit_at_k
from benchmarks.studies.command import cores, default_cache
from benchmarks.studies.data.fetched.features import load_collection
from benchmarks.studies.parallel import run_tasks
from benchmarks.studies.report import table
from benchmarks.studies.table.problem import build_problem
from benchmarks.studies.table.run import Run, train
from benchmarks.studies.table.settings import SETTINGS
from benchmarks.studies.training.losses import BASELINE

RATES = (3e-4, 1e-3, 3e-3)
SEEDS = (100,)
CHOSEN_ON = ("all", "40 % shuffled", "all, 2 layers", "40 % shuffled, 2 layers")


def main() -> None:
    problem = build_problem(load_collection(default_cache("realpairs"), cores()))
    runs = [Run(setting, BASELINE, seed, learning_rate=rate) for rate in RATES for setting in CHOSEN_ON for seed in SEEDS]
    outcomes = run_tasks(train, problem, runs, jobs=cores(), label="training", unit="run")
    rows = []
    for layers in (1, 2):
        for rate in RATES:
            scores = [
                mean(
                    hit_at_k(ranks, [10])[10]
                    for outcome in outcomes
                    for ranks in outcome.validation.values()
                    if of(outcome.run, rate, name)
                )
                for name in CHOSEN_ON
                if SETTINGS[name].layers == layers
            ]
            rows.append([str(layers), f"{rate:g}", *(f"{score:.2f}" for score in (*scores, mean(scores)))])
    print(table(["layers", "learning rate", "as found", "40 % shuffled", "mean"], rows))


def of(run: Run, rate: float, setting: str) -> bool:
    return (run.learning_rate, run.setting) == (rate, setting)


if __name__ == "__main__":
    main()
