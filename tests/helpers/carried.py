"""Whether what travels with a pair is still its own when it reaches the loss."""

from typing import Any

import torch
from torch import Tensor

from otter_losses import OTTERLoss


class Recorder(OTTERLoss):
    """Writes down which pairs a call has, known by their image features, and what came with them."""

    def __init__(self, image_features: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.known = image_features.detach()
        self.calls: list[dict[str, Tensor]] = []

    def forward(self, image_features: Tensor, *arguments: Any, **named: Any) -> Any:
        rows = torch.cdist(image_features.detach().to(self.known), self.known).argmin(1)
        given = {name: named[name] for name in self.per_pair if name in named}
        self.calls.append({"rows": rows, **given})
        return super().forward(image_features, *arguments, **named)

    def check(self, **wanted: Tensor) -> None:
        """Each of the calls' pairs came with its own value, and the pairs came in another order than the data set's."""
        rows = torch.cat([call["rows"] for call in self.calls])
        assert len(rows) >= len(self.known)
        assert not torch.equal(rows[: len(self.known)], torch.arange(len(self.known)))
        assert set(rows.tolist()) == set(range(len(self.known)))
        for call in self.calls:
            assert call.keys() == {"rows", *wanted}
            for name, values in wanted.items():
                assert len(set(values.tolist())) > 1
                torch.testing.assert_close(call[name].to(values.dtype), values[call["rows"]], rtol=1e-6, atol=0.0)
