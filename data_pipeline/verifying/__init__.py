"""Whether a set still is what was published."""
