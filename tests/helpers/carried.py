"""Whether what travels with a pair is still its own when it reaches the loss."""

from typing import Any

import torch
from torch import Tensor

from otter_losses import OTTERLoss

Call = dict[str, Tensor]


class Recorder(OTTERLoss):
    """Writes down which pairs a call has, known by their image features, and what came with them."""

    def __init__(self, image_features: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.known = image_features.detach()
        self.calls: list[Call] = []

    def forward(self, image_features: Tensor, *arguments: Any, **named: Any) -> Any:
        rows = torch.cdist(image_features.detach().to(self.known), self.known).argmin(1)
        given = {name: named[name] for name in self.per_pair if name in named}
        self.calls.append({"rows": rows, **given})
        return super().forward(image_features, *arguments, **named)

    def check(self, **wanted: Tensor) -> None:
        check_carried(self.calls, **wanted)


def check_carried(calls: list[Call], **wanted: Tensor) -> None:
    """Each pair of the calls came with its own value; all pairs came, and in another order than the data set's."""
    rows = torch.cat([call["rows"] for call in calls])
    for name, values in wanted.items():
        assert len(set(values.tolist())) > 1
        assert set(rows.tolist()) == set(range(len(values)))
        assert rows[: len(values)].tolist() != list(range(len(values)))
        for call in calls:
            assert call.keys() == {"rows", *wanted}
            torch.testing.assert_close(call[name].to(values.dtype), values[call["rows"]], rtol=1e-6, atol=0.0)
