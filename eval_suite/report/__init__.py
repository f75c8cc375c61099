"""Pages, figures, sentences and tables of the results."""

from eval_suite.report.report_page import render

__all__ = ["render"]
