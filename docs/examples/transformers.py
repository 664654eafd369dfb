"""A tiny CLIPModel learns drawings and their names in transformers' Trainer.

pip install -e '.[transformers]'
python -m docs.examples.transformers
"""

from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, TrainingArguments, default_data_collator, set_seed

from docs.examples.pairs import load_pairs
from otter_losses import EMATeacher, OTTERLoss
from otter_losses.integrations.transformers import PairLossTrainer

PAD, END = 0, 1
LENGTH = 12


def tokenize(captions: list[str]) -> tuple[Tensor, int]:
    """A token a word, END after the last, PAD up to LENGTH; and the size of the vocabulary."""
    vocabulary: dict[str, int] = {}
    rows = torch.full((len(captions), LENGTH), PAD)
    for row, caption in zip(rows, captions, strict=True):
        tokens = [vocabulary.setdefault(word, len(vocabulary) + 2) for word in caption.lower().split()]
        tokens = [*tokens[: LENGTH - 1], END]
        row[: len(tokens)] = torch.tensor(tokens)
    return rows, len(vocabulary) + 2


def make_model(words: int) -> CLIPModel:
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"image_size": 32, "patch_size": 16}
    # The text's embedding is taken where END stands.
    text = {"vocab_size": words, "max_position_embeddings": LENGTH, "pad_token_id": PAD, "bos_token_id": END, "eos_token_id": END}
    return CLIPModel(CLIPConfig(text_config=tower | text, vision_config=tower | vision, projection_dim=32))


def collate(pairs: list[dict[str, Any]]) -> dict[str, Any]:
    return {**default_data_collator(pairs), "return_loss": True}


def main() -> list[float]:
    """Train for some steps; returns their losses."""
    set_seed(0)
    pictures, captions = load_pairs(128)
    pictures = (pictures - pictures.mean()) / pictures.std()
    tokens, words = tokenize(captions)
    alpha = [0.5] * len(captions)  # how far each pair is believed; an audit's report.alpha() goes here
    columns = zip(pictures, tokens, alpha, strict=True)
    pairs = [{"pixel_values": picture, "input_ids": row, "alpha": believed} for picture, row, believed in columns]
    model = make_model(words)
    arguments = TrainingArguments(
        mkdtemp(),
        max_steps=32,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    trainer = PairLossTrainer(
        loss=OTTERLoss(),
        teacher=EMATeacher(model),
        model=model,
        args=arguments,
        train_dataset=pairs,
        data_collator=collate,
    )
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    for step, loss in enumerate(losses, 1):
        print(f"step {step}: {loss:.4f}")
    return losses


if __name__ == "__main__":
    main()
