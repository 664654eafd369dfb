"""The page's snippets that encode pairs, with tiny models of the libraries that they name: each pair's features in its row."""

import re
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from tests.helpers.paths import ROOT

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}


def snippet(name: str) -> Any:
    page = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    known: dict[str, Any] = {"torch": torch, "np": np}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if f"def {name}(" in block:
            exec(block, known)
    return known[name]


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(5, 3, 32, 32, generator=generator), torch.randint(1, 64, (5, 8), generator=generator)


def check(found: list[Any], images: torch.Tensor, texts: torch.Tensor) -> None:
    for array, expected in zip(found, (images, texts), strict=True):
        assert array.dtype == np.float16
        np.testing.assert_allclose(array, expected.numpy(), rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_open_clip(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(8, vision, text).eval()
    images, texts = inputs
    found = snippet("open_clip_features")(model, [(images[:3], texts[:3]), (images[3:], texts[3:])])
    with torch.no_grad():
        check(found, model.encode_image(images), model.encode_text(texts))


def test_transformers(inputs: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**TOWER, "vocab_size": 64, "max_position_embeddings": 8},
        vision_config={**TOWER, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    images, texts = inputs
    parts = [{"pixel_values": images[rows], "input_ids": texts[rows]} for rows in (slice(0, 3), slice(3, 5))]
    found = snippet("clip_features")(model, parts)
    with torch.no_grad():
        whole = model(pixel_values=images, input_ids=texts)
    check(found, whole.image_embeds, whole.text_embeds)
