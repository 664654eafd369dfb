"""A teacher that follows its student: the exponential moving average of its weights."""

from otter_losses.teacher.ema import EMATeacher

__all__ = ["EMATeacher"]
