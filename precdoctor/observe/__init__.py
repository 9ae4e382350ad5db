"""Instruments: they read what a run does and never change it."""
