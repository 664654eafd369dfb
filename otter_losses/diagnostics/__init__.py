"""What a training run should be asked: whether its temperature suits the data, and what its targets look like."""

from otter_losses.diagnostics.log import log_targets
from otter_losses.diagnostics.scale import ScaleCheck, scale_check
from otter_losses.diagnostics.targets import plan_summary, target_summary

__all__ = ["ScaleCheck", "log_targets", "plan_summary", "scale_check", "target_summary"]
