r"""
How hard a pair pulls
=====================

Cross entropy pulls hardest at the pair that fits least. Where captions are wrong, that
is a wrong pair. With ``q`` above 0 the pull is :math:`p^q (1 - p)` instead of
:math:`1 - p`, for a pair that the model gives the probability p.
"""

import matplotlib.pyplot as plt
import torch
from otter_losses import InfoNCELoss

# %%
# The gradient is read off the loss itself: two pairs, whose features lie at an angle to
# each other, so that p is known.

similarity = torch.linspace(-1, 1, 81)
fig, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for q, colour in (
    (0.0, "#444444"),
    (0.3, "#2a8c4a"),
    (0.7, "#e08a1e"),
    (1.0, "#1768ac"),
):
    loss, probabilities, pulls = InfoNCELoss(q=q), [], []
    for cosine in similarity.tolist():
        x = torch.eye(2)
        y = torch.tensor([[cosine, -cosine], [-cosine, cosine]], requires_grad=True)
        loss(x, y, 3.0).backward()
        assert y.grad is not None
        probabilities.append(torch.sigmoid(torch.tensor(2 * 3.0 * cosine)).item())
        pulls.append(-y.grad[0, 0].item())
    scale = 1 / (3.0 / 2)
    axis.plot(
        probabilities,
        [pull * scale for pull in pulls],
        color=colour,
        label=f"q = {q:g}",
    )
axis.set(
    xlabel="probability of the given pair, p", ylabel="pull", xlim=(0, 1), ylim=(0, 1)
)
axis.legend(frameon=False)
plt.show()

# %%
# With ``q = 0.3``, the default of :class:`~otter_losses.RobustLoss`, a pair that the
# model hardly believes pulls little, and one that it is learning pulls nearly as
# before.
