"""Why `RobustLoss` goes badly at a sharp start scale, and what holds it; validation concepts only. README.md has the findings."""
