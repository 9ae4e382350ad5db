"""Constants near 1 that a low format rounds to 1, or to another decay."""
