"""Theory that runs: which dimensions collapse, when, and why, before or beside training."""
