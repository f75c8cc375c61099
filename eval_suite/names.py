"""What may be asked for by name; light, as the command line reads it before anything else is imported."""

USEFULNESS = ("probe", "minibatch_probe", "knn", "few_shot", "retrieval")
"""Metrics against labels."""
GEOMETRY = ("rank", "shape", "views", "graph", "homology")
METRICS = (*USEFULNESS, *GEOMETRY)
BASELINES = ("untrained", "pixels")
FEATURE_SETS = ("embedding", "patch_mean", "last2", "last4", "projector", "angles")
