"""Several ranks that share one batch: which pairs are whose, what they exchange, and what happens where one is missing."""
