"""Integers in formats that can't hold them, and what they are used for."""
