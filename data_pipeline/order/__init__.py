"""Which sample comes when."""

from data_pipeline.order.order import (
    Order,
    sample_index,
    share,
)

__all__ = ["Order", "sample_index", "share"]
