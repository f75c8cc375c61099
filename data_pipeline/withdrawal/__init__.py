"""Withdraw images from a data set: `remove` changes its tables, then `compact` its shards."""
