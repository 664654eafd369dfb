"""
What OTTER believes
===================

Transport gives an image's mass to captions that fit it, other than its own. What it
finds depends on which similarities count.
"""

import matplotlib.pyplot as plt
import torch
from otter_losses.functional import otter_targets
from torch.nn.functional import normalize

# %%
# A batch of ten
# --------------
# Images 0 and 1 show one thing, 2 and 3 another, 4 to 6 a third, 7 and 8 a fourth; 9 is
# alone. The captions of 4 and 7 were exchanged. The teacher knows texts better than
# images, as is usual.

shows = torch.tensor([0, 0, 1, 1, 2, 2, 2, 3, 3, 4])
says = torch.tensor([0, 0, 1, 1, 3, 2, 2, 2, 3, 4])
torch.manual_seed(0)
centres = normalize(torch.randn(5, 64), dim=-1)
v = normalize(centres[shows] + 0.25 * torch.randn(10, 64), dim=-1)
t = normalize(centres[says] + 0.05 * torch.randn(10, 64), dim=-1)

# %%
# With ``gamma_text=0`` image 4 gives its mass to captions that fit it. With
# ``gamma_text=1``, the paper's, captions that are like the *given* caption count as
# well, and the given one is wrong.

fig, axes = plt.subplots(1, 2, figsize=(8, 4.2), layout="constrained", sharey=True)
for axis, gamma_text in zip(axes, (0.0, 1.0), strict=True):
    plan, _ = otter_targets(v, t, epsilon=0.15, gamma_image=1.0, gamma_text=gamma_text)
    drawn = axis.imshow(plan, cmap="Greens", vmin=0, vmax=1)
    axis.set(
        title=f"gamma_text = {gamma_text:g}",
        xlabel="caption",
        xticks=range(10),
        yticks=range(10),
    )
    fit, alike = plan[4, says == shows[4]].sum(), plan[4, 8]
    print(f"gamma_text = {gamma_text:g}: to captions that fit image 4 {fit:.2f}")
    print(f"  to the one that is like its own, wrong caption {alike:.2f}")
axes[0].set_ylabel("image")
fig.colorbar(drawn, ax=axes, label="share of the transported mass", shrink=0.8)
plt.show()

# %%
# Image 9 fits nothing, and its mass must go somewhere: transport places all of it. That
# is why ``alpha``, the weight of the given pair, should be near the share of pairs that
# you believe.
