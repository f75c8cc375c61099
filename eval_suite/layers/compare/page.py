"""The page compare.html: one chart of how alike two encoders are, and a table with every number."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from eval_suite.layers.compare.conclusion import ALIKE, DIFFERENT, best_pairs, same_depth, verdict
from eval_suite.layers.compare.vectors import EMBEDDING
from eval_suite.report.figures import COLOURS, INK, svg
from eval_suite.report.pages import template

DRAWN = {"cka": COLOURS["pretrained"], "neighbours": COLOURS["angles"]}
"""Measures in the chart over depth, with their colours; both are 1 for equal layers."""
MOST_TEXT = 14
"""Largest number of blocks for which the cells of the chart of all pairs show their numbers."""


def render(found: Mapping[str, Any]) -> str:
    """Return the page for results in the form of compare.json."""
    rows = found["pairs"]
    one_by_one = same_depth(rows)
    chart = over_depth(rows) if one_by_one else all_pairs(rows, found["a"]["layers"], found["b"]["layers"])
    return template("compare").render(
        found=found,
        chart=Markup(chart),
        one_by_one=one_by_one,
        rows=best_pairs(rows),
        verdict=verdict,
        alike=ALIKE,
        different=DIFFERENT,
        drawn=DRAWN,
    )


def over_depth(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw CKA and the overlap of neighbours over depth as SVG, beside untrained encoders and chance."""

    def draw(axes: Axes) -> None:
        depth = np.arange(len(rows))
        for name, colour in DRAWN.items():
            values = {
                key: np.array([row[name][key] for row in rows], dtype=np.float64)
                for key in ("value", "low", "high", "untrained", "shuffled")
            }
            axes.fill_between(depth, values["low"], values["high"], color=colour, alpha=0.2, linewidth=0)
            axes.plot(depth, values["value"], "o-", color=colour, linewidth=1.6, markersize=4)
            axes.plot(depth, values["untrained"], color=colour, linewidth=1, linestyle=(0, (4, 3)))
            axes.plot(depth, values["shuffled"], color=colour, linewidth=1, linestyle=(0, (1, 2)))
        labels = [str(i) for i in depth]
        if rows[-1]["a"] == EMBEDDING:
            labels[-1] = EMBEDDING
        every = max(1, -(-len(rows) // 14))
        shown = sorted({*range(0, len(rows) - 1, every), len(rows) - 1})
        axes.set_xticks(shown, [labels[i] for i in shown])
        axes.set_xlabel("block")
        axes.set_ylim(min(-0.03, axes.get_ylim()[0]), 1.03)

    return svg(draw, 6.4, 2.8)


def all_pairs(rows: Sequence[Mapping[str, Any]], a: Sequence[str], b: Sequence[str]) -> str:
    """Draw the CKA of all pairs of blocks as SVG, a row for each block of A and a column for each of B."""
    columns, lines = [name for name in b if name != EMBEDDING], [name for name in a if name != EMBEDDING]
    values = np.full((len(lines), len(columns)), np.nan)
    for row in rows:
        if row["a"] in lines and row["b"] in columns and row["cka"]["value"] is not None:
            values[lines.index(row["a"]), columns.index(row["b"])] = row["cka"]["value"]

    def draw(axes: Axes) -> None:
        mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap="viridis", vmin=0, vmax=1)
        for count, ticks, label, name in (
            (len(columns), axes.set_xticks, axes.set_xlabel, "block of B"),
            (len(lines), axes.set_yticks, axes.set_ylabel, "block of A"),
        ):
            shown = range(0, count, max(1, -(-count // 14)))
            ticks([i + 0.5 for i in shown], [str(i) for i in shown])
            label(name)
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.grid(visible=False)
        if max(values.shape) <= MOST_TEXT:
            for (line, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    colour = "#111111" if value > 0.6 else "#ffffff"
                    place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7.5}
                    axes.text(column + 0.5, line + 0.5, f"{value:.2f}", color=colour, **place)
        assert axes.figure is not None
        bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.05)
        bar.outline.set_edgecolor(INK)
        bar.ax.tick_params(length=0, labelsize=8)

    return svg(draw, 5.2, 1.2 + 0.3 * min(len(lines), 14))
