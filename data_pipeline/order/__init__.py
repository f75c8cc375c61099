"""The sample order: which sample is used at which position of a run."""

from data_pipeline.order.order import (
    Order,
    sample_index,
    share,
)

__all__ = ["Order", "sample_index", "share"]
