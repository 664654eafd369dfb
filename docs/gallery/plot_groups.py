"""
Pairs that belong together
==========================

Pairs of one product are negatives of each other, unless the loss is told.
"""

import matplotlib.pyplot as plt
import torch
from otter_losses import InfoNCELoss
from torch import Tensor, nn
from torch.nn.functional import normalize

from made_up import make_pairs

# %%
# Twenty products have 100 pairs each, all right. Heads are trained with and without the
# products' ids, and asked on other pairs of the same products how similar two images of
# one product have become, and of two.

images, texts, _, topic = make_pairs(8000, wrong=0.0)
products = topic.unique()[:20]
rows = torch.cat([(topic == product).nonzero().flatten()[:150] for product in products])
order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
train, test = rows[order[: len(rows) * 2 // 3]], rows[order[len(rows) * 2 // 3 :]]


def trained(use_groups: bool) -> nn.Linear:
    torch.manual_seed(0)
    image_head, text_head = nn.Linear(96, 32), nn.Linear(80, 32)
    optimizer = torch.optim.AdamW(
        [*image_head.parameters(), *text_head.parameters()], lr=1e-3
    )
    loss = InfoNCELoss()
    for _ in range(20):
        for batch in train[torch.randperm(len(train))].split(200):
            x, y = (
                normalize(image_head(images[batch]), dim=-1),
                normalize(text_head(texts[batch]), dim=-1),
            )
            optimizer.zero_grad()
            loss(x, y, 14.3, groups=topic[batch] if use_groups else None).backward()
            optimizer.step()
    return image_head


def similarities(head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Of test images of one product, and of different ones."""
    with torch.inference_mode():
        x = normalize(head(images[test]), dim=-1)
    same = topic[test][:, None] == topic[test]
    others = ~torch.eye(len(test), dtype=torch.bool)
    return (x @ x.T)[same & others], (x @ x.T)[~same]


fig, axes = plt.subplots(
    1, 2, figsize=(8, 3), layout="constrained", sharey=True, sharex=True
)
for axis, name in zip(axes, ("without groups", "with groups"), strict=True):
    one, different = similarities(trained(use_groups=name == "with groups"))
    axis.hist(
        different.numpy(),
        bins=50,
        density=True,
        color="#a0a0a0",
        label="different products",
    )
    axis.hist(
        one.numpy(),
        bins=50,
        density=True,
        color="#2a8c4a",
        alpha=0.7,
        label="one product",
    )
    axis.set(title=name, xlabel="cosine of two images")
    print(f"{name}: one product {one.mean():.2f}, different {different.mean():.2f}")
axes[0].set_ylabel("density")
axes[0].legend(frameon=False)
plt.show()
