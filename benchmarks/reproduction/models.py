"""The paper's two encoders in one space, and the tokenizer that goes with them."""

import json
import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.reproduction.config import ConfigError, ModelConfig

Tokenize = Callable[[list[str]], dict[str, Tensor]]
OFFLINE = (
    "Where the model hub cannot be reached, set HF_HOME to a cache that holds it, or train from random weights with "
    "--set model.pretrained=false (and, for trials alone, --set model.tokenizer=hash)."
)


class PairModel(nn.Module):
    """A timm image encoder and a transformers text encoder, both into `width` dimensions, with learned temperatures.

    The image encoder's classifier is a new linear layer of `width` outputs. Texts are the mean of the last hidden state over
    their tokens, behind a linear layer only where its dimensions are not `width`.

    Raises:
        ConfigError: an encoder that is unknown or cannot be fetched.

    Example:
        >>> import torch
        >>> from benchmarks.reproduction import config, models
        >>> settings = config.load(["otter", "dry_run", "tiny"]).model
        >>> tokens = models.tokenizer(settings)(["a red circle", "a dog"])
        >>> outputs = models.PairModel(settings)(torch.zeros(2, 3, 64, 64), tokens)
        >>> outputs["image_features"].shape, round(outputs["logit_scale"].item(), 1)
        (torch.Size([2, 32]), 49.4)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image = _image_encoder(config)
        self.text = _text_encoder(config)
        hidden = self.text.config.hidden_size
        self.text_head = nn.Identity() if hidden == config.width else nn.Linear(hidden, config.width)
        self.log_scale = nn.Parameter(torch.tensor(config.log_scale))
        self.distill_log_scale = nn.Parameter(torch.tensor(config.log_scale)) if config.temperatures == 2 else None

    def encode_images(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to L2-normalised (B, width), float32."""
        return normalize(self.image(images).float(), dim=-1)

    def encode_texts(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """`input_ids` and `attention_mask`, each (B, T), to L2-normalised (B, width), float32."""
        hidden = self.text(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return normalize(self.text_head(mean).float(), dim=-1)

    def text_config(self) -> dict[str, Any]:
        """What `ModelConfig.text_config` has to be for the same text encoder with random weights."""
        found: dict[str, Any] = json.loads(self.text.config.to_json_string())
        return found

    def forward(self, images: Tensor, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the losses take, by keyword: features of both sides, and the scales, exponentiated and held in their range."""
        outputs = {
            "image_features": self.encode_images(images),
            "text_features": self.encode_texts(tokens),
            "logit_scale": self.scale(self.log_scale),
        }
        if self.distill_log_scale is not None:
            outputs["distill_logit_scale"] = self.scale(self.distill_log_scale)
        return outputs

    def scale(self, logarithm: Tensor) -> Tensor:
        """What cosines are multiplied with; beyond its range a scale gets no gradient, as in the released code."""
        return logarithm.exp().clamp(self.config.min_scale, self.config.max_scale)


def _image_encoder(config: ModelConfig) -> nn.Module:
    import timm

    try:
        encoder: nn.Module = timm.create_model(config.image, pretrained=config.pretrained, num_classes=config.width)
    except Exception as error:  # timm, the hub and the network each have their own
        raise ConfigError(f"model.image {config.image!r} cannot be had from timm: {error}. {OFFLINE}") from error
    return encoder


def _text_encoder(config: ModelConfig) -> Any:
    from transformers import AutoConfig, AutoModel

    try:
        if config.pretrained:
            encoder = AutoModel.from_pretrained(config.text)
        else:
            encoder = AutoModel.from_config(AutoConfig.for_model(**{"model_type": "bert", **config.text_config}))
    except Exception as error:
        raise ConfigError(f"model.text {config.text!r} cannot be had from transformers: {error}. {OFFLINE}") from error
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # its weights would get no gradient, which DistributedDataParallel waits for
    return encoder


def tokenizer(config: ModelConfig) -> Tokenize:
    """Captions to `input_ids` and `attention_mask` of at most `max_tokens`, padded to the longest; can be sent to workers.

    Raises:
        ConfigError: the tokenizer cannot be fetched.

    Example:
        >>> from benchmarks.reproduction.config import ModelConfig
        >>> tokenize = tokenizer(ModelConfig(tokenizer="hash", text_config={"vocab_size": 100}))
        >>> tokenize(["a red circle", "a dog"])["attention_mask"].tolist()
        [[1, 1, 1, 1], [1, 1, 1, 0]]
    """
    if config.tokenizer == "hash":
        return partial(_hash, config.text_config.get("vocab_size", 30_522), config.max_tokens)
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(config.text)
    except Exception as error:
        raise ConfigError(f"the tokenizer of model.text {config.text!r} cannot be had: {error}. {OFFLINE}") from error
    return partial(_tokens, theirs, config.max_tokens)


def _tokens(theirs: Any, longest: int, captions: list[str]) -> dict[str, Tensor]:
    found = theirs(captions, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def _hash(vocabulary: int, longest: int, captions: list[str]) -> dict[str, Tensor]:
    """A number a word, behind a 1 that begins every text; 0 pads. Different words can share a number."""
    words = [re.findall(r"\w+", caption.lower())[: longest - 1] for caption in captions]
    ids = [torch.tensor([1, *(2 + zlib.crc32(word.encode()) % (vocabulary - 2) for word in text)]) for text in words]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {"input_ids": padded, "attention_mask": (padded > 0).long()}
