"""Other projects' losses and solvers, where their packages are installed; without them a row says what is missing.

    pip install --no-deps siglip-kernel==0.1.2 memeff==0.3.1 inf-cl==1.2.1 flash-sinkhorn==0.4.1 pot==0.9.7.post1

beside torch, triton, numpy and scipy. Each adapter computes what the contender of its family computes, on the same features, as
far as the package can; what differs is said in its docstring and in the table.
"""

import importlib
import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.batch import Batch, Value
from otter_losses.ops import reference

PACKAGES = {
    "siglip_kernel": "siglip-kernel==0.1.2",
    "memeff": "memeff==0.3.1",
    "inf_cl": "inf-cl==1.2.1",
    "flash_sinkhorn": "flash-sinkhorn==0.4.1",
    "ot": "pot==0.9.7.post1",
}
"""What to import, and what to install for it."""

NOTES = {
    "siglip-kernel": "its gradients are made in the forward; its value comes back in the features' dtype",
    "memeff": "stable=False; its temperature is a float, so the scale has no gradient; float32 products in TF32",
    "inf-cl": "one call a direction, as its README; without a process group its ring is one block; products in TF32",
    "flash-sinkhorn": "potentials only, no targets; the given pairs stay in; another start, so other values after 5 rounds; TF32",
    "POT targets": "ot.sinkhorn on the torch backend",
    "POT, batch solver": "ot.batch.solve_batch, in logarithms; it computes the plan and its error every ten rounds",
}
"""What to know of a row, by how its name begins."""


class Missing(RuntimeError):
    """A package that is not there."""


def load(module: str) -> Any:
    """The module, or an error that says what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        raise Missing(f"not installed: pip install --no-deps {PACKAGES[error.name]}") from error


def siglip_kernel(batch: Batch) -> Value:
    """`fused_siglip_loss`, which takes the logarithm of the scale and a bias, here 0."""
    package = load("siglip_kernel")
    bias = torch.zeros((), device=batch.x.device, requires_grad=True)

    def value() -> Tensor:
        found: Tensor = package.fused_siglip_loss(batch.x, batch.y, batch.scale.log(), bias)
        return found

    return value


def memeff(batch: Batch) -> Value:
    """`MemoryEfficientCLIPLoss`, at the batch's scale once and for all."""
    loss = load("memeff").MemoryEfficientCLIPLoss(
        temperature=1 / float(batch.scale.detach()), normalized_inputs=True, stable=False
    )

    def value() -> Tensor:
        found: Tensor = loss(batch.x, batch.y)
        return found

    return value


def inf_cl(batch: Batch) -> Value:
    """`cal_inf_loss` in both directions. Scaled here: its own handling of a scale's gradient needs a process group."""
    package = load("inf_cl")

    def value() -> Tensor:
        x, y = batch.x.float(), batch.y.float()
        found: Tensor = (package.cal_inf_loss(batch.scale * x, y) + package.cal_inf_loss(batch.scale * y, x)) / 2
        return found

    return value


def flash_sinkhorn(v: Tensor, t: Tensor, epsilon: float = 0.15, iterations: int = 5, tuned: bool = False) -> tuple[Tensor, ...]:
    """Potentials of both problems: OTTER's similarity is a product of width 2E, so half a squared distance but for two terms.

    Those, one a row and one a column, cancel in the plan once it has converged; after five rounds from other potentials it
    is close, not equal. The package cannot take the diagonal out. Tuned, its kernel is the best of 44 configurations, found on
    the first call; otherwise it has the package's default blocks.
    """
    solver = load("flash_sinkhorn.kernels").sinkhorn_flashstyle_alternating
    rows, columns = torch.cat((v, t), 1), torch.cat((v + t, t), 1)
    weights = torch.full((len(v),), 1 / len(v), device=v.device)
    options = {"eps": epsilon, "n_iters": iterations, "cost_scale": 0.5, "autotune": tuned}
    return (*solver(rows, columns, weights, weights, **options), *solver(columns, rows, weights, weights, **options))


def pot_targets(v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both targets by POT's `ot.sinkhorn`, five iterations of each problem on the torch backend."""
    ot = load("ot")
    n = len(v)
    weights = torch.full((n,), 1 / n, dtype=v.dtype, device=v.device)
    scores = reference.similarity(v, t).fill_diagonal_(-math.inf)
    plans = (
        ot.sinkhorn(weights, weights, -cost, 0.15, numItermax=5, stopThr=0, warn=False, method="sinkhorn")
        for cost in (scores.T, scores)
    )
    # POT matches columns first and rows last; transposing both the problem and the plan gives rows first.
    image_to_text, text_to_image = (plan.T for plan in plans)
    return image_to_text / image_to_text.sum(1, keepdim=True), text_to_image / text_to_image.sum(1, keepdim=True)


def pot_batch(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Plans of a batch of problems by POT's `ot.batch.solve_batch`, uniform marginals, so many iterations."""
    plan: Tensor = load("ot.batch").solve_batch(-scores, epsilon, max_iter=iterations, tol=0.0, grad="detach").plan
    return plan
