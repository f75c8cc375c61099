"""Ways to spread one train step over processes."""
