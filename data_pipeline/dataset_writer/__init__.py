"""Publish finished shards as a data set, or as a new generation of one."""
