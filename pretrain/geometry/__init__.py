"""Geometry, as functions of torch tensors.

Tori: the grid Z_N × Z_N (`torus`), the torus of revolution in R³ and its (p, q) curves
(`torus_of_revolution`), the flat torus T^m (`flat_torus`), cell complexes and their homology (`cells`), how
often a path on T^m winds (`winding`), codes and what they are worth (`codes`), a store addressed by angles
(`memory`). Hyperbolic space, and how tree-like distances are (`hyperbolic`). Derivatives along a direction,
k-jets in one pass, products with Jacobian and Hessian (`jets`; what each torch operation does to a Taylor
series `taylor`, functions of one number `elementary`). Jacobians between tokens, holonomy around loops of
tokens and of inputs (`transport`).
"""
