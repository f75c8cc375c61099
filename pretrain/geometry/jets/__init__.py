"""Derivatives of every order along curves, and what is transported along them."""

from pretrain.geometry.jets.jets import directional_curvature, hvp, jet, jvp, vjp

__all__ = ["directional_curvature", "hvp", "jet", "jvp", "vjp"]
