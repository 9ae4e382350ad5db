"""Slow, obvious twins of the functions under test: no bit tricks, no shared code."""
