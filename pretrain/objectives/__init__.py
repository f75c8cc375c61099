"""Losses, and the statistics of the global batch that they consist of."""
