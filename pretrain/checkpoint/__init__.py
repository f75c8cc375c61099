"""Checkpoints on disk: written, read, and used as first weights."""
