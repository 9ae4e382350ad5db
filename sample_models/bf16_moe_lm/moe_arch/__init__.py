"""A small mixture-of-experts language model and what it takes to train it."""
