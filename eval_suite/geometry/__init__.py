"""The geometry of a cloud of features, each quantity with a null or a closed form to compare it with."""

from eval_suite.geometry.measure_geometry import (
    CLOUDS,
    Options,
    clouds,
    measure,
    measure_pairs,
    of_views,
)

__all__ = ["CLOUDS", "Options", "clouds", "measure", "measure_pairs", "of_views"]
