"""A model of two towers, and its batch as a whole and as each rank has it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.batches import make_features
from tests.helpers.groups import make_groups


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(6, 8, dtype=torch.float64)
        self.text = nn.Linear(7, 8, dtype=torch.float64)
        self.log_scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([-1.0], dtype=torch.float64))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)
        return x, y, self.log_scale.exp(), 1.0 * self.bias


def whole_batch(pairs: int) -> dict[str, Tensor]:
    images, _ = make_features("random", pairs, 6, seed=1)
    _, texts = make_features("random", pairs, 7, seed=2)
    v, t = make_features("duplicated", pairs, 9, seed=3)
    alpha = torch.linspace(0, 1, pairs, dtype=torch.float64)
    return {"images": images, "texts": texts, "v": v, "t": t, "alpha": alpha, "groups": make_groups("some", pairs)}


def part_of(counts: list[int], rank: int) -> dict[str, Tensor]:
    start = sum(counts[:rank])
    return {name: tensor[start : start + counts[rank]] for name, tensor in whole_batch(sum(counts)).items()}
