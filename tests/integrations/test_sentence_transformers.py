"""sentence-transformers' own trainer, cache and wrappers drive our losses over pairs of texts."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from torch import Tensor, nn
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from docs.examples.sentence_transformers import load_names, train_tokenizer
from otter_losses import EMATeacher, InfoNCELoss, OTTERLoss, RobustLoss
from otter_losses.integrations.sentence_transformers import CachedPairRankingLoss, PairRankingLoss
from otter_losses.losses.base import PairLoss
from tests.helpers.carried import Recorder
from tests.helpers.checks import relative
from tests.helpers.examples import check_falls, load, theirs

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
]

PAIRS, BATCH = 8, 4
RATE = 0.5


@pytest.fixture(scope="module")
def names() -> dict[str, list[str]]:
    return load_names(PAIRS)


@pytest.fixture(scope="module")
def saved(names: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(names, tmp_path_factory.mktemp("bert"))


def save_model(names: dict[str, list[str]], folder: Path) -> Path:
    """A tiny BERT."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer([*names["anchor"], *names["positive"]], 200)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def make_model(folder: Path) -> Any:
    """In float64, so that the order of summation cannot be told."""
    words = Transformer(str(folder))
    words.model.pooler = None
    return SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())], device="cpu").double()


def in_order(dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> BatchSampler:
    return BatchSampler(SequentialSampler(dataset), batch_size, drop_last)


def make_trainer(model: Any, names: dict[str, list[Any]], folder: Path | str, loss: nn.Module, **options: Any) -> Any:
    own = {name: options.pop(name) for name in ("evaluator",) if name in options}
    arguments = {
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": BATCH,
        "batch_sampler": in_order,
        "optim": "sgd",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "max_steps": 1,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(str(folder), **arguments),
        train_dataset=Dataset.from_dict(names),
        eval_dataset=Dataset.from_dict(names),
        loss=loss,
        **own,
    )


def features_of(model: Any, names: dict[str, list[str]], rows: slice = slice(None)) -> list[dict[str, Any]]:
    return [model.preprocess(column[rows]) for column in names.values()]


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def gradient_of(value: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """By backward, which is when a cache embeds again."""
    model.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def gradient_taken(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of one step of SGD."""
    return {name: (before[name] - after[name]) / RATE for name in before}


def check_same(actual: dict[str, Tensor], expected: dict[str, Tensor], bound: float = 1e-8) -> None:
    assert actual.keys() >= expected.keys()
    assert any(float(tensor.abs().max()) > 1e-3 for tensor in expected.values())
    floor = 1e-2 * max(float(tensor.abs().max()) for tensor in expected.values())
    for name, wanted in expected.items():
        assert relative(actual[name], wanted, floor=floor) <= bound, name


@pytest.mark.parametrize("which", ["ours", "theirs"])
def test_example_learns(which: str) -> None:
    check_falls(load("sentence_transformers", theirs("sentence_transformers") if which == "theirs" else None).main())


def test_info_nce_is_their_ranking_loss_in_both_directions(saved: Path, names: dict[str, list[str]]) -> None:
    model = make_model(saved)
    ours = PairRankingLoss(model, InfoNCELoss())(features_of(model, names))
    theirs = MultipleNegativesRankingLoss(model, directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
    wanted = theirs(features_of(model, names), None)
    assert float(ours.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
    check_same(gradient_of(ours, model), gradient_of(wanted, model))


@pytest.mark.parametrize("taught", [False, True])
def test_cached_gradients_are_the_uncached_ones(saved: Path, names: dict[str, list[str]], taught: bool) -> None:
    model = make_model(saved)
    teacher = None
    if taught:
        teacher = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    plain = PairRankingLoss(model, OTTERLoss(), teacher=teacher)
    cached = CachedPairRankingLoss(model, OTTERLoss(), teacher=teacher, mini_batch_size=3)
    value, kept = plain(features_of(model, names)), cached(features_of(model, names))
    assert float(kept.detach()) == pytest.approx(float(value.detach()), rel=1e-10)
    wanted = gradient_of(value, model)
    check_same(gradient_of(kept, model), wanted)
    halved = gradient_of(cached(features_of(model, names)) / 2, model)
    check_same({name: 2 * gradient for name, gradient in halved.items()}, wanted)
    with torch.no_grad():
        assert float(cached(features_of(model, names))) == pytest.approx(float(value.detach()), rel=1e-10)
    if taught:
        own = PairRankingLoss(model, OTTERLoss())(features_of(model, names))
        assert float(own.detach()) != pytest.approx(float(value.detach()), rel=1e-4)
        assert not any(parameter.requires_grad for parameter in plain.teacher.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [PairRankingLoss, CachedPairRankingLoss])
def test_their_matryoshka_loss_wraps_ours(saved: Path, names: dict[str, list[str]], kind: Any) -> None:
    model = make_model(saved)
    inner = kind(model, OTTERLoss())
    value = MatryoshkaLoss(model, inner, matryoshka_dims=[8, 4])(features_of(model, names), None)
    columns = [model(column)["sentence_embedding"] for column in features_of(model, names)]
    inner = PairRankingLoss(model, OTTERLoss())
    cut = [nn.functional.normalize(column[:, :4], dim=-1) for column in columns]
    wanted = inner.compute_loss_from_embeddings(columns) + inner.compute_loss_from_embeddings(cut)
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-8)
    check_same(gradient_of(value, model), gradient_of(wanted, model))


@pytest.mark.parametrize("kind", [PairRankingLoss, CachedPairRankingLoss])
def test_accumulated_gradient_is_the_mean_of_the_batches(
    saved: Path, names: dict[str, list[str]], kind: Any, tmp_path: Path
) -> None:
    model = make_model(saved)
    before = parameters_of(model)
    parts = [PairRankingLoss(model, OTTERLoss())(features_of(model, names, rows)) for rows in (slice(BATCH), slice(BATCH, None))]
    wanted = gradient_of((parts[0] + parts[1]) / 2, model)
    model.zero_grad()
    make_trainer(model, names, tmp_path, kind(model, OTTERLoss()), gradient_accumulation_steps=2).train()
    check_same(gradient_taken(before, parameters_of(model)), wanted)


@pytest.mark.parametrize("kind", [PairRankingLoss, CachedPairRankingLoss])
@pytest.mark.parametrize(("column", "labels"), [("label", "alpha"), ("score", "alpha"), ("labels", "groups")])
def test_a_column_of_labels_reaches_the_loss_with_its_pairs(
    saved: Path, names: dict[str, list[str]], kind: Any, column: str, labels: str, tmp_path: Path
) -> None:
    """In shuffled batches, accumulated, and in the evaluation."""
    model = make_model(saved)
    with torch.no_grad():
        known = nn.functional.normalize(model(features_of(model, names)[0])["sentence_embedding"], dim=-1)
    values = torch.arange(PAIRS) // 2 if labels == "groups" else torch.linspace(0.05, 0.5, PAIRS)
    recorder = Recorder(known)
    options = {"batch_sampler": "batch_sampler", "learning_rate": 0.0, "max_steps": 2, "gradient_accumulation_steps": 2}
    trainer = make_trainer(model, {**names, column: values.tolist()}, tmp_path, kind(model, recorder, labels=labels), **options)
    trainer.train()
    recorder.check(**{labels: values})
    recorder.calls.clear()
    trainer.evaluate()
    recorder.check(**{labels: values})


@pytest.mark.parametrize("loss", [OTTERLoss(), RobustLoss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("kind", [PairRankingLoss, CachedPairRankingLoss])
def test_labels_beside_a_teacher(saved: Path, names: dict[str, list[str]], kind: Any, loss: PairLoss) -> None:
    model, teacher = make_model(saved), make_model(saved)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    alpha = torch.linspace(0, 1, PAIRS, dtype=torch.float64)
    columns, taught = ([each(column)["sentence_embedding"] for column in features_of(each, names)] for each in (model, teacher))
    x, y, v, t = (nn.functional.normalize(column, dim=-1) for column in (*columns, *taught))
    wanted = loss(x, y, 20.0, None, v.detach(), t.detach(), alpha=alpha)
    value = kind(model, loss, teacher=teacher, labels="alpha")(features_of(model, names), alpha)
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
    check_same(gradient_of(value, model), gradient_of(wanted, model))
    alone = kind(model, loss, labels="alpha").compute_loss_from_embeddings(columns, alpha)  # as SpladeLoss calls it
    assert float(alone.detach()) == pytest.approx(float(loss(x, y, 20.0, alpha=alpha).detach()), rel=1e-10)


def test_labels_that_the_loss_cannot_use(saved: Path, names: dict[str, list[str]], tmp_path: Path) -> None:
    model = make_model(saved)
    with pytest.raises(
        ValueError, match="labels is 'alpha'; need one of 'groups', what InfoNCELoss takes for each pair, or None"
    ):
        CachedPairRankingLoss(model, InfoNCELoss(), labels="alpha")
    loss = PairRankingLoss(model, OTTERLoss(), labels="alpha")
    with pytest.raises(ValueError, match="labels is 'alpha', and the data set has none; need a column named label"):
        make_trainer(model, names, tmp_path, loss).train()
    with pytest.raises(ValueError, match=r"alpha has values from nan to nan; need numbers in \[0, 1\]"):
        make_trainer(model, {**names, "label": [float("nan")] * PAIRS}, tmp_path, loss).train()
    # Without a word of what they are, labels mean nothing.
    value = PairRankingLoss(model, InfoNCELoss())(features_of(model, names), torch.full((PAIRS,), 7))
    assert bool(torch.isfinite(value))


def test_evaluates_saves_and_writes_its_card(saved: Path, names: dict[str, list[str]], tmp_path: Path) -> None:
    model = make_model(saved).float()
    trainer = make_trainer(
        model, names, tmp_path, PairRankingLoss(model, OTTERLoss(epsilon=0.1)), evaluator=TranslationEvaluator(*names.values())
    )
    trainer.train()
    found = trainer.evaluate()
    with torch.no_grad():
        rows = (slice(BATCH), slice(BATCH, None))
        parts = [float(PairRankingLoss(model, OTTERLoss(epsilon=0.1))(features_of(model, names, part))) for part in rows]
    assert found["eval_loss"] == pytest.approx(sum(parts) / 2, rel=1e-5)
    assert 0 <= found["eval_mean_accuracy"] <= 1
    trainer.save_model(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(again.encode(names["anchor"]), model.encode(names["anchor"]))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "- loss:PairRankingLoss" in card
    assert "otter_losses.integrations.sentence_transformers.PairRankingLoss" in card
    assert "OTTERLoss(alpha=0.5, epsilon=0.1, iterations=5" in card
    assert "#### PairRankingLoss" in card
    assert "eprint={2112.09445}" in card
    assert not hasattr(PairRankingLoss(model, InfoNCELoss()), "citation")


def test_ema_teacher_follows_once_per_optimizer_step(saved: Path, names: dict[str, list[str]], tmp_path: Path) -> None:
    model = make_model(saved)
    teacher = EMATeacher(model, decay=0.5, warmup=False)
    loss = PairRankingLoss(model, OTTERLoss(), teacher=teacher)
    trainer = make_trainer(model, names, tmp_path, loss, gradient_accumulation_steps=2, max_steps=3)
    teacher.follow(model, trainer.create_optimizer())
    trainer.train()
    assert teacher.updates == 3
    assert not any(torch.equal(ours, now) for ours, now in zip(teacher.module.parameters(), model.parameters(), strict=True))


def test_what_cannot_be_trained_is_refused(saved: Path, names: dict[str, list[str]]) -> None:
    model = make_model(saved)
    with pytest.raises(TypeError, match=r"loss is <class .*OTTERLoss'>; need a loss of otter_losses"):
        PairRankingLoss(model, OTTERLoss)  # type: ignore[arg-type]
    for kind in (PairRankingLoss, CachedPairRankingLoss):
        with pytest.raises(ValueError, match=r"reduction is 'none', one loss a pair; need 'mean'.*Leave reduction out\."):
            kind(model, InfoNCELoss(reduction="none"))
    with pytest.raises(ValueError, match="scale is 0; need a finite number above 0"):
        PairRankingLoss(model, OTTERLoss(), scale=0)
    with pytest.raises(ValueError, match="mini_batch_size is 0; need an int of at least 1"):
        CachedPairRankingLoss(model, OTTERLoss(), mini_batch_size=0)
    with pytest.raises(ValueError, match="the data set has 3 columns of texts; need two"):
        PairRankingLoss(model, OTTERLoss())([*features_of(model, names), features_of(model, names)[0]])
    static = SentenceTransformer(modules=[StaticEmbedding(train_tokenizer(names["anchor"]), embedding_dim=4)], device="cpu")
    with pytest.raises(ValueError, match="a StaticEmbedding, whose batches cannot be divided; use PairRankingLoss"):
        CachedPairRankingLoss(static, OTTERLoss())
