"""Which pairs to trust: an audit of image-text pairs by features of frozen encoders, without a noise rate or labels."""

from otter_losses.audit.report import PairTrust
from otter_losses.audit.trust import pair_trust

__all__ = ["PairTrust", "pair_trust"]
