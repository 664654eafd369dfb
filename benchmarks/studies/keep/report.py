"""What was kept and what it was worth, as text."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.studies.keep.arms import ARMS, KEPT_ABOVE
from benchmarks.studies.keep.run import Scored
from benchmarks.studies.report import spread, table
from benchmarks.studies.training.losses import BASELINE


def report(scored: Sequence[Scored], facts: dict[str, Any]) -> str:
    of = {(one.run.setting, one.run.method, one.run.seed): one for one in scored}
    seeds = list(dict.fromkeys(one.run.seed for one in scored))
    rows = []
    for setting in dict.fromkeys(one.run.setting for one in scored):
        audited = [of[setting, "InfoNCE on the kept", seed] for seed in seeds]
        base = [of[setting, BASELINE, seed].validation for seed in seeds]
        cells = [f"{mean(one.kept for one in audited):.0%}", f"{mean(one.right for one in audited):.0%}", f"{mean(base):.1f}"]
        for arm in list(ARMS)[1:]:
            gains = [of[setting, arm, seed].validation - start for seed, start in zip(seeds, base, strict=True)]
            cells.append(f"{mean(gains):+.1f}{spread(gains, math.sqrt(len(gains)))}")
        rows.append([setting, *cells])
    machine = facts["machine"]
    notes = (
        f"Kept: pairs of trust {KEPT_ABOVE} or more. Mean of hit@1, 5 and 10 over both validation sets, per cent; all but the "
        f"first are differences to it, means of {len(seeds)} seeds ± standard error. {machine['device']}, torch "
        f"{machine['torch']}, commit {machine['commit']}."
    )
    return f"{table(['setting', 'kept', 'right among them', *ARMS], rows)}\n\n{notes}"
