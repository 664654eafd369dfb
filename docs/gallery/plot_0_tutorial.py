"""
Tutorial: from embeddings to a trained model
============================================

You have image-text pairs of which some are wrong, and frozen encoders. In ten minutes:
which pairs are wrong, a loss that uses the answer, and whether it helped.
"""

# %%
# Embeddings
# ----------
# Yours are two arrays, row i of both is pair i; any frozen encoders will do, and their
# widths may differ:
#
# .. code-block:: python
#
#    images = torch.from_numpy(numpy.load("images.npy"))
#    texts = torch.from_numpy(numpy.load("texts.npy"))
#
# Here they are made up, so that the truth is known: in 40 of 100 pairs the caption
# belongs to another image.

import math

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from made_up import make_pairs

images, texts, wrong, _ = make_pairs(6000, wrong=0.4)
held_out_images, held_out_texts, _, _ = make_pairs(500, wrong=0.0, seed=1)
print(images.shape, texts.shape)

# %%
# Which pairs are wrong?
# ----------------------
# The audit asks of each pair whether the captions of similar images are like its
# caption, and the other way round. It is told neither the share of wrong pairs nor any
# label.

from otter_losses.audit import pair_trust

report = pair_trust(images, texts)
low, high = report.wrong_share_interval
print(f"estimated share of wrong pairs: {report.wrong_share:.2f}")
print(f"95 % interval: {low:.2f} to {high:.2f}; in truth: {wrong.float().mean():.2f}")

fig, axis = plt.subplots(figsize=(7, 3), layout="constrained")
bins = torch.linspace(float(report.score.min()), float(report.score.max()), 60).numpy()
axis.hist(
    [report.score[~wrong].numpy(), report.score[wrong].numpy()],
    bins=bins,
    stacked=True,
    color=["#2a8c4a", "#c0392b"],
    label=["right", "wrong"],
)
axis.set(
    xlabel="score",
    ylabel="pairs",
    title="What the audit sees, and the truth that it does not",
)
axis.legend(frameon=False)
plt.show()

# %%
# On your own data the truth is not known: look at the fifty pairs of the lowest score,
# and at the caption the audit would rather give each image. ``python -m
# otter_losses.audit`` makes a page of that.

for row in report.score.argsort()[:3].tolist():
    better = int(report.best_text[row])
    print(f"pair {row}: trust {report.trust[row]:.2f}, rather the caption of {better}")

# %%
# Train, twice
# ------------
# Two linear heads, once with CLIP's loss and once with the trust of each pair. The only
# differences are the lines of the loss.

from otter_losses import EMATeacher, InfoNCELoss, RobustLoss


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(96, 64), nn.Linear(80, 64)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            normalize(self.image(images), dim=-1),
            normalize(self.text(texts), dim=-1),
            self.log_scale.exp(),
        )


def train(loss: nn.Module, alpha: Tensor | None) -> Heads:
    torch.manual_seed(0)
    model = Heads()
    teacher = EMATeacher(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(15):
        for rows in torch.randperm(len(images)).split(500):
            x, y, scale = model(images[rows], texts[rows])
            if alpha is None:
                value = loss(x, y, scale)
            else:
                v, t, s = teacher(images[rows], texts[rows])
                value = loss(
                    x,
                    y,
                    scale,
                    dist_image_features=v,
                    dist_text_features=t,
                    dist_logit_scale=s,
                    alpha=alpha[rows],
                )
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            teacher.update(model)
    return model


models = {
    "InfoNCELoss": train(InfoNCELoss(), None),
    "RobustLoss": train(RobustLoss(), report.alpha()),
}

# %%
# Did it help?
# ------------
# Ask pairs that are right and were not trained on: among 500 captions, how often is an
# image's own one of the ten nearest?


def hit_at_10(model: Heads) -> float:
    with torch.inference_mode():
        x, y, _ = model(held_out_images, held_out_texts)
    rank = (x @ y.T).argsort(1, descending=True).argsort(1).diagonal()
    return float((rank < 10).float().mean()) * 100


for name, model in models.items():
    print(f"{name}: hit@10 {hit_at_10(model):.1f} %")

# %%
# These pairs are made up, and kind to the audit: topics recur. What it was worth on
# real ones is under :doc:`/docs/benchmarks`.

# %%
# Is the temperature right?
# -------------------------
# Whichever loss you keep, ask the same pairs whether the logit scale is too sharp for
# these data. It is if the trained scale is more than 1.8 times the one that these pairs
# would have; then there is a warning. Here there is none.

from otter_losses.diagnostics import scale_check

for name, model in models.items():
    with torch.inference_mode():
        x, y, scale = model(held_out_images, held_out_texts)
    found = scale_check(x, y, scale, batch_size=500)
    print(f"{name}: trained {found.logit_scale:.1f}, best {found.best_scale:.1f}")

# %%
# Next
# ----
# Put the loss into your own loop: :doc:`/docs/open_clip`, :doc:`/docs/transformers`,
# :doc:`/docs/sentence_transformers`, :doc:`/docs/lightning` or :doc:`/docs/ddp`. Choose
# another for other data: :doc:`/docs/choosing`.
