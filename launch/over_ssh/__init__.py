"""Runs on many nodes, which are reached over ssh."""
