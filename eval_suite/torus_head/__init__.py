"""Commands for checkpoints whose head is a torus."""
