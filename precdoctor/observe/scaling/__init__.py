"""Gradient scalers, scaled gradients, and clipping around them."""
