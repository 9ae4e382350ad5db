"""Optimizer steps: what is stored beside what was meant, replayed on samples in float64."""
