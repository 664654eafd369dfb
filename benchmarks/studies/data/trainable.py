"""The image encoder as a module to train."""

import torch
from torch import Tensor, nn

from benchmarks.demo.encoders import ImageEncoder


class TrainableEncoder(nn.Module):
    """Pictures (N, size, size, 3) in uint8 -> (N, 1280). Batch normalisation stays folded into the convolutions."""

    width = 1280

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ImageEncoder().module

    def forward(self, pictures: Tensor) -> Tensor:
        inputs = (pictures.permute(0, 3, 1, 2).float() - 127) / 128
        features: Tensor = self.encoder.extract_features(inputs)
        return torch.mean(features, dim=(2, 3))
