"""A small transformer language model with quantized linear layers, and what it takes to train it."""
