"""English and German names of emoji meet in sentence-transformers' trainer.

pip install -e '.[sentence-transformers]'
python -m docs.examples.sentence_transformers
"""

from tempfile import mkdtemp

import emoji
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import set_seed

from otter_losses import OTTERLoss
from otter_losses.integrations.sentence_transformers import PairRankingLoss


def load_names(count: int) -> dict[str, list[str]]:
    """Names of the same emoji in two languages, drawn evenly from all."""
    emoji.config.load_language("de")
    known = [entry for entry in emoji.EMOJI_DATA.values() if "de" in entry and "skin_tone" not in entry["en"]]
    pairs = [tuple(entry[language].strip(":").replace("_", " ") for language in ("en", "de")) for entry in known]
    chosen = [pairs[index * len(pairs) // count] for index in range(count)]
    return {"anchor": [english for english, _ in chosen], "positive": [german for _, german in chosen]}


def train_tokenizer(texts: list[str], size: int = 2000) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    )
    return tokenizer


def main() -> list[float]:
    """Train for some steps; returns their losses."""
    set_seed(0)
    names = load_names(512)
    tokenizer = train_tokenizer([*names["anchor"], *names["positive"]])
    alpha = [0.5] * 512  # how far each pair is believed; an audit's report.alpha() goes here
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=64)], device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        mkdtemp(),
        max_steps=32,
        per_device_train_batch_size=64,
        learning_rate=2e-2,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({**names, "label": alpha}),
        loss=PairRankingLoss(model, OTTERLoss(), labels="alpha"),
    )
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    for step, loss in enumerate(losses, 1):
        print(f"step {step}: {loss:.4f}")
    return losses


if __name__ == "__main__":
    main()
