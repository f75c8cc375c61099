"""Geometry: the discrete torus."""
