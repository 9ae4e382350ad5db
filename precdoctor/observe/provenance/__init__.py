"""Which line of the user's code made, cast and stepped a parameter."""
