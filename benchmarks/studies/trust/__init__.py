"""How well `pair_trust` finds captions that were shuffled, on the pairs of the registered run; training pairs only."""
