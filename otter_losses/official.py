"""The released code's loss over several processes, whose transport removes the wrong entries on every rank but the first."""

import torch
import torch.nn.functional as F
from torch import Tensor

from otter_losses.ops import contract
from otter_losses.ops.world import World
from otter_losses.sinkhorn import sinkhorn_knopp


def losses(
    x: Tensor,
    y: Tensor,
    v: Tensor,
    t: Tensor,
    scale: Tensor,
    second: Tensor,
    epsilon: float,
    iterations: int,
    gamma_image: float,
    gamma_text: float,
    world: World,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of the given pairs, and divergence from the transported targets, of this rank's rows, (b,).

    Both directions are summed. As in the released code every rank solves the whole N x N problem, and no gradient flows through
    what was gathered from the ranks.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y, v, t = (each.to(contract.computing(x)) for each in (x, y, v.detach(), t.detach()))
        images, texts, v, t = (world.gather(each) for each in (x, y, v, t))
        own = world.own(len(x))
        labels = torch.arange(own.start, own.stop, device=x.device)
        penalty = 100 * (gamma_image + gamma_text)
        within = gamma_image * (v @ v.T) + gamma_text * (t @ t.T)
        contrastive, distill = x.new_zeros(2, len(x))
        for rows, columns, cross in ((x, texts, v @ t.T), (y, images, t @ v.T)):
            transported = targets(within + cross, penalty, world.counts, epsilon, iterations)[own]
            logits = rows @ columns.T
            contrastive = contrastive + F.cross_entropy(scale * logits, labels, reduction="none")
            distill = distill + F.kl_div(F.log_softmax(second * logits, 1), transported, reduction="none").sum(1)
        return contrastive, distill


def targets(scores: Tensor, penalty: float, counts: tuple[int, ...], epsilon: float, iterations: int) -> Tensor:
    """The transport of scores (N, N) in which each rank lowers what it takes for the diagonal of its rows: the first rank's."""
    n = len(scores)
    wrong = torch.cat([torch.eye(count, n, dtype=scores.dtype, device=scores.device) for count in counts])
    plan = sinkhorn_knopp(scores - penalty * wrong, epsilon, iterations)
    assert isinstance(plan, Tensor)
    return F.normalize(plan, p=1, dim=1)
