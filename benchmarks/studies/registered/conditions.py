"""What is trained on and how: the table's seven settings, and further ones around them."""

import math
from dataclasses import dataclass

from benchmarks.studies.table.run import EPOCHS
from benchmarks.studies.table.settings import SETTINGS, Setting
from benchmarks.studies.training.heads import INITIAL_SCALE

RELEASED_SCALE = math.exp(3.9)
"""The logit scale that OTTER's released code starts from."""

SEEDS = range(5)


@dataclass(frozen=True)
class Condition(Setting):
    within_source: bool = False
    """Whether wrong captions are of the same source."""
    start_scale: float = INITIAL_SCALE
    epochs: int = EPOCHS

    @property
    def data(self) -> tuple[object, ...]:
        """What decides the pairs: conditions that share it share the trust."""
        return self.sources, self.keywords, self.shuffled, self.within_source


SEVEN = tuple(SETTINGS)
"""The 42 scores of the paper's count are theirs."""

CONDITIONS = {
    condition.name: condition
    for condition in (
        *(Condition(**vars(setting)) for setting in SETTINGS.values()),
        *(
            Condition(f"{name}{head}", layers=layers, **changed)
            for name, changed in (
                ("20 % shuffled", {"shuffled": 0.2}),
                ("60 % shuffled", {"shuffled": 0.6}),
                ("40 % within source", {"shuffled": 0.4, "within_source": True}),
                ("all, scale 49.4", {"start_scale": RELEASED_SCALE}),
                ("40 % shuffled, scale 49.4", {"shuffled": 0.4, "start_scale": RELEASED_SCALE}),
                ("all, 30 epochs", {"epochs": 30}),
                ("40 % shuffled, 30 epochs", {"shuffled": 0.4, "epochs": 30}),
            )
            for layers, head in ((1, ""), (2, ", 2 layers"))
        ),
    )
}
