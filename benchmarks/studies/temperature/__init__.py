"""How sharp the scales of InfoNCE's runs are, beside what the registered run found there; README.md has the findings."""
