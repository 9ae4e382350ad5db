"""What the range of float16, or of 8 bits, does to gradients; what a program does to them itself."""
