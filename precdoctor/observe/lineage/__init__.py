"""What is made from parameters and constants, and from what."""
