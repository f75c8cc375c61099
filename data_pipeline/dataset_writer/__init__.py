"""Finished shards to a new generation of a set."""
