"""Pages, figures, sentences and tables of what was measured."""

from eval_suite.report.report import (
    render,
)

__all__ = ["render"]
