"""A copy of a run in an object store, made while it trains, and continued from when the disk is gone."""
