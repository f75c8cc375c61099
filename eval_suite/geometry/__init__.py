"""The geometry of a cloud of features, each quantity against a null."""

from eval_suite.geometry.measure_geometry import (
    CLOUDS,
    clouds,
    measure,
    of_views,
)

__all__ = ["CLOUDS", "clouds", "measure", "of_views"]
