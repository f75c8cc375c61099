"""Checkpoints to verdicts: features, probes, neighbours, rank and the report."""
