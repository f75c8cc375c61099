"""Derivatives of every order along a direction, and transport along paths (`jets.transport`)."""

from pretrain.geometry.jets.jets import directional_curvature, hvp, jet, jvp, vjp

__all__ = ["directional_curvature", "hvp", "jet", "jvp", "vjp"]
