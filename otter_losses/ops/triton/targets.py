"""`ops.eager.sinkhorn.plans` in kernels."""

import torch
from torch import Tensor

from otter_losses.distributed.shard import WHOLE_BATCH
from otter_losses.ops.memory import Storage
from otter_losses.ops.problem import Problem, Saved, Student
from otter_losses.ops.targets import HardTargets, SoftTargets
from otter_losses.ops.triton import sinkhorn
from otter_losses.ops.triton.gibbs import GibbsKernel
from otter_losses.ops.triton.kernels import targets as kernels
from otter_losses.ops.triton.launch import launch, tiles


def plans(soft: SoftTargets, backend: str) -> tuple[Tensor, Tensor]:
    """``M`` and ``M'``, (N, N) each, of a teacher's features; `backend` as `dispatch.resolve` returned it."""
    v, t = soft.image_features, soft.text_features
    assert v is not None
    assert t is not None
    n = len(v)
    student, storage = Student(v, t, t, soft.inv_epsilon), Storage(torch.float32, False)
    problem = Problem(student, HardTargets(), soft, None, slice(0, n), storage, backend)
    saved = Saved.unwritten(problem)
    gibbs = GibbsKernel.build(problem, saved)
    sinkhorn.solve(gibbs, soft.iterations, saved, backend, WHOLE_BATCH)
    image_plan = saved.gibbs
    text_plan = torch.empty_like(image_plan)
    tile = kernels.WRITE_PLANS.tiles[0]
    launch(
        kernels.WRITE_PLANS,
        (tiles(n, tile["BM"]),),
        tile,
        gibbs=image_plan,
        params=saved.scalars,
        image_columns=saved.column_scalings[0, 0],
        text_rows=saved.row_scalings[0, 1],
        text_columns=saved.column_scalings[0, 1],
        text_plan=text_plan,
        n=n,
        KIND=gibbs.kind,
    )
    return image_plan, text_plan
