"""Checkpoints on disk: written, read, used as first weights, and exported for other libraries."""
