"""
A temperature that is too sharp
===============================

A model that learns wrong pairs by heart is surer of its choices than other pairs bear
out.
"""

import matplotlib.pyplot as plt
import torch
from otter_losses import InfoNCELoss
from otter_losses.diagnostics import scale_check
from otter_losses.functional import info_nce_loss
from torch import nn
from torch.nn.functional import normalize

from made_up import make_pairs

# %%
# Two heads are trained on a few pairs, 40 of 100 of them wrong, for far too long.

images, texts, _, _ = make_pairs(1000, wrong=0.4)
held_out_images, held_out_texts, _, _ = make_pairs(500, wrong=0.0, seed=1)
torch.manual_seed(0)
image_head, text_head = nn.Linear(96, 64), nn.Linear(80, 64)
log_scale = nn.Parameter(torch.tensor(2.66))
optimizer = torch.optim.AdamW(
    [*image_head.parameters(), *text_head.parameters(), log_scale], lr=3e-3
)
loss = InfoNCELoss()
for _ in range(60):
    for rows in torch.randperm(len(images)).split(250):
        x, y = (
            normalize(image_head(images[rows]), dim=-1),
            normalize(text_head(texts[rows]), dim=-1),
        )
        optimizer.zero_grad()
        loss(x, y, log_scale.exp()).backward()
        optimizer.step()

# %%
# The held-out pairs would rather have a lower scale. Above a ratio of 1.8 there is a
# warning.

import warnings

with torch.inference_mode():
    x = normalize(image_head(held_out_images), dim=-1)
    y = normalize(text_head(held_out_texts), dim=-1)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = scale_check(x, y, log_scale.exp(), batch_size=250)
print(f"trained {found.logit_scale:.1f}, best {found.best_scale:.1f}")
for warning in told:
    print(f"warned: {warning.message}")

scales = torch.logspace(0, 2, 60)
losses = [float(info_nce_loss(x[:250], y[:250], scale)) for scale in scales]
fig, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.semilogx(scales, losses, color="#444444")
axis.axvline(found.best_scale, color="#2a8c4a", label="best for held-out pairs")
axis.axvline(found.logit_scale, color="#c0392b", linestyle="--", label="trained")
axis.set(xlabel="logit scale", ylabel="InfoNCE of held-out pairs")
axis.legend(frameon=False)
plt.show()
