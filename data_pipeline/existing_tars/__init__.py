"""Tars that others made to a set that points into them."""
