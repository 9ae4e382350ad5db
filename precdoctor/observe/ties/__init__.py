"""Parameters in two places."""
