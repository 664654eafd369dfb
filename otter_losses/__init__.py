"""Losses for CLIP-like training on noisy image-text pairs: OTTER's optimal transport targets, and its baselines."""

from otter_losses.checks import set_debug
from otter_losses.gradient_cache import grad_cache
from otter_losses.losses.distillation import DistillationLoss
from otter_losses.losses.info_nce import InfoNCELoss
from otter_losses.losses.label_smoothing import LabelSmoothingLoss
from otter_losses.losses.otter import OTTERLoss
from otter_losses.losses.robust import RobustLoss
from otter_losses.losses.siglip import SigLIPLoss
from otter_losses.sinkhorn import SinkhornResult, sinkhorn_knopp
from otter_losses.teacher import EMATeacher

__all__ = [
    "DistillationLoss",
    "EMATeacher",
    "InfoNCELoss",
    "LabelSmoothingLoss",
    "OTTERLoss",
    "RobustLoss",
    "SigLIPLoss",
    "SinkhornResult",
    "grad_cache",
    "set_debug",
    "sinkhorn_knopp",
]
__version__ = "0.1.0"
