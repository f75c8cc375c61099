"""How useful features are for predicting targets: probes, nearest neighbours, few-shot, retrieval."""

from eval_suite.usefulness.estimate import Estimates, differences
from eval_suite.usefulness.folds.division import divide
from eval_suite.usefulness.folds.measure_folds import divided
from eval_suite.usefulness.measure_usefulness import measure, measure_paired
from eval_suite.usefulness.options import Options

__all__ = ["Estimates", "Options", "differences", "divide", "divided", "measure", "measure_paired"]
