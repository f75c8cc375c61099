"""Targets: what is to be predicted from images, their packed labels or columns of a table."""
