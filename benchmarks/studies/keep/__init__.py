"""Whether it does as well to leave out the pairs that the audit doubts as to weigh them; validation concepts only."""
