"""The charts of what a run logged: the most telling ones first, with the range of a healthy run in grey."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from eval_suite.report import figures
from eval_suite.report.training.healthy import Range, range_of

FIRST = 8
"""Largest number of charts that the page shows at once; the others are folded."""
LABELS = {
    "loss": "loss",
    "prediction": "prediction error between views",
    "sigreg_over_null": "SIGReg over null (1: Gaussian)",
    "uniformity_over_null": "U over null (1: uniform angles)",
    "windings_right": "images whose angles wind right",
    "effective_rank": "effective rank of a batch",
    "probe_balanced_accuracy": "online probe, balanced accuracy",
    "held_out_knn": "k-NN on held-out images, balanced accuracy",
    "held_out_rankme": "RankMe on held-out images",
    "grad_norm": "gradient norm",
    "data_wait": "share of time waiting for data",
    "std_median": "median deviation of the encoder's output",
    "lr": "learning rate",
    "images_per_second": "throughput, images per second",
}
"""Labels of logged quantities in the order in which they are drawn; others follow, labelled by their name."""
NOT_DRAWN = {"step", "samples", "epoch", "time", "memory_gib", "skipped_steps"}


class Chart(NamedTuple):
    """A quantity over the steps of a run, still to be drawn."""

    title: str
    steps: tuple[float, ...]
    values: tuple[float, ...]
    healthy: Range | None
    mark: float
    """The step of the evaluated checkpoint."""

    def draw(self) -> str:
        """Return the chart as SVG."""

        def draw(axes: Axes) -> None:
            figures.draw_curve(axes, self.steps, self.values, self.mark)
            if self.healthy:
                _band(axes, self.healthy)

        return figures.svg(draw, 3.6, 2.1)


def charts(rows: Sequence[dict[str, Any]], mark: float) -> list[Chart]:
    """Return a chart for each logged quantity, in the order of the page.

    A quantity that never changes is left out, unless it has a range or a label of its own.
    """
    logged = [key for key in {key: None for row in rows for key in row} if key not in NOT_DRAWN]
    found = []
    for key in [*(key for key in LABELS if key in logged), *(key for key in logged if key not in LABELS)]:
        steps, values = zip(*((row["step"], row[key]) for row in rows if key in row), strict=True)
        healthy = range_of(key)
        if key not in LABELS and healthy is None and len(set(values)) == 1 < len(values):
            continue
        title = LABELS.get(key, key.replace("_", " "))
        found.append(Chart(title, steps, values, healthy, mark))
    return found


def _band(axes: Axes, values: Range) -> None:
    """Shade the range of a healthy run, and widen the axis so that its ends can be seen."""
    low, high = axes.get_ylim()
    low = min(low, values.low)
    high = max(high, values.high if math.isfinite(values.high) else 1.2 * values.low)
    axes.axhspan(values.low, min(high, values.high), color=figures.INK, alpha=0.1, linewidth=0)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(MaxNLocator(5))
