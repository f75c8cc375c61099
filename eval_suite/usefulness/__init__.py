"""How useful features are for predicting targets: probes, nearest neighbours, few-shot, retrieval."""

from eval_suite.usefulness.measure_usefulness import Options, Samples, measure, measure_paired

__all__ = ["Options", "Samples", "measure", "measure_paired"]
