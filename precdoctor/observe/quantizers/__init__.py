"""Weights on their way through a quantizer, and data that is clipped."""
