"""A tiny language model over bytes, and the ways to quantize it before, while and after its fine-tuning."""
