"""The operation probe: every operation of a few steps."""
