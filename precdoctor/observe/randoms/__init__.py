"""Random numbers in low formats, and what is made of them."""
