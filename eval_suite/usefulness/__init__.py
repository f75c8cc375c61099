"""What features are good for: probes, neighbours, few-shot, retrieval."""

from eval_suite.usefulness.measure_usefulness import (
    Options,
    Samples,
    measure,
    measure_paired,
)

__all__ = ["Options", "Samples", "measure", "measure_paired"]
