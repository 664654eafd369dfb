"""sentence-transformers: our losses for two columns, anchor and positive, also with its cached gradients."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from otter_losses import checks
from otter_losses.integrations.losses import check_loss
from otter_losses.integrations.missing import absent
from otter_losses.integrations.teachers import Teaching, check_separate
from otter_losses.losses.base import PairLoss
from otter_losses.losses.otter import OTTERLoss

try:
    from sentence_transformers.base.losses import CachedLossMixin, has_static_embedding_input
except ImportError as error:
    CachedLossMixin = absent("sentence-transformers", error)

__all__ = ["CachedPairRankingLoss", "PairRankingLoss"]

Column = dict[str, Any]


class PairRankingLoss(nn.Module):
    """One of our losses in place of `MultipleNegativesRankingLoss`, for two columns of texts: anchor and positive.

    The embeddings are L2-normalised, their cosines are multiplied by `scale`, and both directions count. All processes share a
    batch, without a ``gather_across_devices``, unless the loss was built with a ``group``.

    Args:
        model: the SentenceTransformer.
        loss: any loss of this library with ``reduction="mean"``. SigLIPLoss is used without its bias.
        scale: 1 / temperature, above 0.
        teacher: the model that makes the targets: a SentenceTransformer, which is frozen, or an `EMATeacher`. By default the
            targets are made from the model's own embeddings. A `TeacherCallback` of ``otter_losses.integrations.transformers``
            lets an EMATeacher follow the model. The teacher is called in eval mode and without gradient.
        labels: what the data set's column of labels (``label``, ``labels``, ``score`` or ``scores``) means to the loss:
            ``"alpha"``, numbers in [0, 1], such as an audit's ``report.alpha()``; ``"groups"``, integers; or None, which
            ignores the column.

    The loss is called with the features of the columns, N texts each, and with the labels, (N,). It returns a scalar.

    Raises:
        TypeError: the loss is not one of ours, or the teacher is not a module.
        ValueError: the loss has ``reduction="none"``; the scale is not a positive number; the loss does not take such labels,
            or the data set has none; the model trains a weight of the teacher; there are not two columns.

    Example:
        >>> from otter_losses import OTTERLoss
        >>> def train(SentenceTransformerTrainer, model, pairs):
        ...     SentenceTransformerTrainer(model, train_dataset=pairs, loss=PairRankingLoss(model, OTTERLoss())).train()
    """

    def __init__(
        self,
        model: nn.Module,
        loss: PairLoss,
        scale: float = 20.0,
        teacher: nn.Module | None = None,
        *,
        labels: str | None = None,
    ) -> None:
        super().__init__()
        check_loss(loss)
        checks.check_number("scale", scale, low=0.0, above=True)
        if labels is not None and labels not in loss.per_pair:
            raise ValueError(
                f"labels is {labels!r}; need one of {', '.join(map(repr, loss.per_pair))}, what {type(loss).__name__} takes for "
                "each pair, or None."
            )
        if teacher is not None:
            check_separate(teacher, model)
            teacher.requires_grad_(False)  # the trainer's optimizer takes what the loss holds
        self.model = model
        self.loss = loss
        self.scale = scale
        self.teacher = teacher
        self.labels = labels
        self._teaching = Teaching()

    def forward(self, sentence_features: Iterable[Column], labels: Tensor | None = None) -> Tensor:
        columns = list(sentence_features)
        given = self.given(columns, labels)
        return self.compute_loss_from_embeddings([self.model(column)["sentence_embedding"] for column in columns], given)

    def given(self, columns: Sequence[Column], labels: Tensor | None) -> dict[str, Tensor]:
        """The arguments of the loss in addition to the embeddings, by name."""
        taught = [F.normalize(column, dim=-1) for column in self.teach(columns)]
        return {**dict(zip(("dist_image_features", "dist_text_features"), taught, strict=False)), **self.named(labels)}

    def named(self, labels: Tensor | None) -> dict[str, Tensor]:
        """The data set's column of labels under the loss's name for it."""
        if self.labels is None:
            return {}
        if labels is None:
            raise ValueError(
                f"labels is {self.labels!r}, and the data set has none; need a column named label, one value a pair. Rename it, "
                "or leave labels out."
            )
        return {self.labels: labels}

    def teach(self, columns: Sequence[Column]) -> list[Tensor]:
        """The teacher's embeddings of each column, (N, E); an empty list without a teacher."""
        if self.teacher is None:
            return []
        with self._teaching(self.teacher, self.model):
            return [self.teacher(dict(column))["sentence_embedding"] for column in columns]

    def compute_loss_from_embeddings(
        self, embeddings: Sequence[Tensor], labels: Tensor | dict[str, Tensor] | None = None
    ) -> Tensor:
        """The loss of the embeddings of two columns, each (N, D), with the labels, (N,), or with all that `given` returns."""
        if len(embeddings) != 2:
            raise ValueError(f"the data set has {len(embeddings)} columns of texts; need two: anchor and positive.")
        anchor, positive = (F.normalize(column, dim=-1) for column in embeddings)
        given = labels if isinstance(labels, dict) else self.named(labels)
        value: Tensor = self.loss(anchor, positive, self.scale, **given)
        return value

    def get_config_dict(self) -> dict[str, Any]:
        """The entries of the model card."""
        teacher = type(self.teacher).__name__ if self.teacher else None
        return {"loss": repr(self.loss), "scale": self.scale, "teacher": teacher, "labels": self.labels}

    @property
    def citation(self) -> str:
        if not isinstance(self.loss, OTTERLoss):
            raise AttributeError("the loss is not OTTER")  # the model card goes without
        return """
@inproceedings{wu2022data,
    title={Data Efficient Language-Supervised Zero-Shot Recognition with Optimal Transport Distillation},
    author={Bichen Wu and Ruizhe Cheng and Peizhao Zhang and Tianren Gao and Joseph E. Gonzalez and Peter Vajda},
    booktitle={International Conference on Learning Representations},
    year={2022},
    eprint={2112.09445},
    archivePrefix={arXiv},
    primaryClass={cs.CV},
}
"""


class CachedPairRankingLoss(CachedLossMixin, PairRankingLoss):
    """`PairRankingLoss` in place of `CachedMultipleNegativesRankingLoss`, for large batches, embedded part by part (GradCache).

    The texts are embedded twice, in mini-batches, and only the activations of one mini-batch are held at a time. The loss and
    its gradient are those of the whole batch.

    Args:
        model, loss, scale, teacher, labels: see `PairRankingLoss`.
        mini_batch_size: number of texts embedded at a time, at least 1.

    Raises:
        ValueError: the model embeds with a StaticEmbedding, whose batches cannot be divided.

    Example:
        >>> from otter_losses import OTTERLoss
        >>> def make(model):
        ...     return CachedPairRankingLoss(model, OTTERLoss(), mini_batch_size=32)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: PairLoss,
        scale: float = 20.0,
        teacher: nn.Module | None = None,
        mini_batch_size: int = 32,
        *,
        labels: str | None = None,
    ) -> None:
        super().__init__(model, loss, scale, teacher, labels=labels)
        checks.check_count("mini_batch_size", mini_batch_size, 1)
        if has_static_embedding_input(model):
            raise ValueError("model embeds with a StaticEmbedding, whose batches cannot be divided; use PairRankingLoss.")
        self.mini_batch_size = mini_batch_size

    def forward(self, sentence_features: Iterable[Column], labels: Tensor | None = None) -> Tensor:
        columns = list(sentence_features)
        value: Tensor = self.forward_cached(columns, self.given(columns, labels))  # type: ignore[operator]
        return value

    def teach(self, columns: Sequence[Column]) -> list[Tensor]:
        if self.teacher is None:
            return []
        teacher = _Embedder(self.teacher, self.mini_batch_size)
        batches = [teacher.embed_minibatch_iter(dict(column), with_grad=False, copy_random_state=False) for column in columns]
        with self._teaching(self.teacher, self.model):
            return [torch.cat([embeddings for embeddings, _ in batch]) for batch in batches]

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: dict[str, Tensor] | None = None, *, with_backward: bool = False
    ) -> Tensor:
        value = self.compute_loss_from_embeddings([torch.cat(column) for column in reps], labels)
        if with_backward:
            value.backward()  # type: ignore[no-untyped-call]
        return value.detach() if with_backward else value

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "mini_batch_size": self.mini_batch_size}


class _Embedder(CachedLossMixin):
    def __init__(self, model: nn.Module, mini_batch_size: int) -> None:
        self.model = model
        self.mini_batch_size = mini_batch_size
