"""The charts of a run: the ranges of a healthy one, and which come first."""

import re
from pathlib import Path

import pytest

from eval_suite.report.training import healthy
from eval_suite.report.training.charts import charts

ROOT = Path(__file__).parents[4]
ROWS = [
    {"step": s, "loss": 1 / s, "zeta": float(s), "sigreg_over_null": 5.0, "agreement_hue": 0.5, "same": 1.0}
    for s in range(1, 31)
]


def test_known_quantities_come_first_and_what_never_changes_is_left_out():
    assert [chart.title.split()[0] for chart in charts(ROWS, 30)] == ["loss", "SIGReg", "zeta", "agreement"]


def grey(drawn: str) -> list[float]:
    """Return the heights of what is shaded in a chart."""
    shaded = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*opacity: 0.1[;"]', drawn)
    ends = [[float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path)] for path in shaded]
    return [max(y) - min(y) for y in ends if y and max(y) > min(y)]


def test_the_range_of_a_healthy_run_is_shaded_even_where_the_values_are_outside():
    by_title = {chart.title.split()[0]: chart for chart in charts(ROWS, 30)}
    assert max(grey(by_title["SIGReg"].draw()), default=0) > 10
    assert by_title["SIGReg"].healthy.words == "1 to 3"
    assert max(grey(by_title["agreement"].draw()), default=0) > 0.5
    assert by_title["loss"].healthy is None


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sigreg_over_null", 2.0, ""),
        ("sigreg_over_null", 4.0, ""),  # neither healthy nor named
        ("sigreg_over_null", 18.0, "objective.weight"),
        ("effective_rank", 1.2, "objective.weight"),
        ("std_median", 0.001, "objective.weight"),
        ("data_wait", 0.3, "data.workers"),
        ("windings_right", 0.1, "steps"),
        ("skipped_steps", 30, "optimizer.lr"),
    ],
)
def test_what_lies_beyond_a_limit_is_named_with_a_remedy(key: str, value: float, said: str):
    rows = [{"step": s, key: value} for s in range(1, 101)]
    count, found = healthy.judged(rows)
    assert count == 1
    assert [said in each.remedy for each in found] == ([True] if said else [])


def test_single_steps_are_not_judged():
    rows = [{"step": s, "sigreg_over_null": 50.0 if s == 97 else 2.0} for s in range(1, 101)]
    assert healthy.judged(rows) == (1, [])


def test_the_ranges_stand_in_the_guide():
    text = (ROOT / healthy.SOURCE).read_text()
    assert all(f"`{key}`" in text for key in healthy.RANGES)
