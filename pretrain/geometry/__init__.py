"""Geometry, as functions of torch tensors; training uses `torus`, the others serve evaluation and users.

- `torus`: the grid Z_N × Z_N.
- `torus_of_revolution`: the torus of revolution in R³ and its (p, q) curves.
- `flat_torus`: the flat torus T^m.
- `cells`: surfaces as cell complexes, and their homology.
- `winding`: how often a path on T^m winds around each circle.
- `codes`: discrete codes of vectors, and how often they collide.
- `memory`: an associative store whose addresses are angles.
- `hyperbolic`: hyperbolic space, and how close distances are to those in a tree.
- `jets`: derivatives along a direction in one pass, products with Jacobian and Hessian, and transport of
  vectors between tokens (`jets.transport`).
"""
