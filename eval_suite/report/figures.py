"""Figures as SVG text whose foreground is the text colour of the page, so that they suit light and dark.

They contain no words that come from users; the page shows those beside the figure, escaped.
"""

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from isotorus.randomness import generator

matplotlib.use("Agg")

INK = "#010203"
"""Placeholder for the text colour of the page, replaced when the SVG is written."""
COLOURS = {
    **{"pretrained": "#3f7fd9", "untrained": "#9a8fb5", "pixels": "#c9973f"},
    **{"projector": "#2f9e78", "angles": "#d9577a", "handmade": "#8a9a3b"},
}
"""Colours of the usual representations, with enough contrast on white and on near-black."""
CLASS_COLOURS = [
    *("#3f7fd9", "#e0703c", "#2f9e78", "#b65fb8", "#c9973f"),
    *("#d9577a", "#5aa9c9", "#8a9a3b", "#9a7a63", "#7b83d6"),
]
"""Colours of up to ten classes."""
_OTHERS = ("#e0703c", "#b65fb8", "#5aa9c9", "#9a7a63", "#7b83d6")
"""Colours of further representations."""
UNLABELLED = "#8d8d8d"
"""Colour of samples without a class."""
POINTS = 400
"""Largest number of points of a curve."""

DASHED: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (3, 3)), "alpha": 0.6}
"""A line that marks a value."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isotorus",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.1,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.useoffset": False,
    **dict.fromkeys(["axes.linewidth", "xtick.major.width", "ytick.major.width", "grid.linewidth"], 0.6),
    **dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor"], INK),
    **dict.fromkeys(["xtick.color", "ytick.color", "grid.color"], INK),
}


def colour(representation: str) -> str:
    """Return the colour of a representation; for a name that a user gave, it depends on the name alone."""
    usual = COLOURS.get(representation) or COLOURS.get(re.sub(r"-\d+$", "", representation))
    return usual or _OTHERS[zlib.crc32(representation.encode()) % len(_OTHERS)]


def class_colours(count: int) -> list[str]:
    """Return a colour for each class; up to ten classes have colours that are easy to tell apart."""
    if count <= len(CLASS_COLOURS):
        return CLASS_COLOURS[:count]
    wheel = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))
    return [matplotlib.colors.to_hex(colour) for colour in wheel]


def draw_curve(
    axes: Axes, steps: Sequence[float], values: Sequence[float], mark: float | None = None
) -> None:
    """Draw a quantity over the steps of a run; a dashed line is at the step `mark` unless it is the last."""
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).astype(int))
    x, y = np.asarray(steps)[shown], np.asarray(values)[shown]
    axes.plot(x, y, color=COLOURS["pretrained"], linewidth=1.4, marker="o" if len(x) == 1 else None)
    if mark is not None and mark < max(steps):
        axes.axvline(mark, **DASHED)
    _step_axes(axes)


def curve(steps: Sequence[float], values: Sequence[float], mark: float | None = None) -> str:
    """Draw a quantity over the steps of a run, as `draw_curve` does, as a figure of its own."""
    return svg(lambda axes: draw_curve(axes, steps, values, mark), 3.6, 2.1)


class Line(NamedTuple):
    """A line over the steps of a run: points (step, value), a colour, and the interval of each value."""

    points: Sequence[tuple[float, float]]
    colour: str
    bounds: Sequence[tuple[float | None, float | None]] = ()


def lines(series: Sequence[Line], dashed: Sequence[Line] = ()) -> str:
    """Draw a quantity over the steps of several runs, and another one, such as a train score, dashed."""

    def draw(axes: Axes) -> None:
        for style, drawn in (("-", series), ("--", dashed)):
            for line in drawn:
                x, y = np.asarray(line.points, dtype=float).T
                axes.plot(x, y, color=line.colour, marker="o", linewidth=1.4, linestyle=style, markersize=3.5)
                if line.bounds:
                    low, high = np.asarray(line.bounds, dtype=float).T
                    axes.errorbar(
                        x,
                        y,
                        np.maximum((y - low, high - y), 0),
                        color=line.colour,
                        linewidth=0,
                        elinewidth=0.9,
                    )
        _step_axes(axes)

    return svg(draw, 3.6, 2.1)


def leads(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Draw by how many points an encoder is ahead of others; a row is a name, the value and its interval.

    The axis always holds 0, where both are level.
    """

    def draw(axes: Axes) -> None:
        for place, (name, value, low, high) in enumerate(rows):
            of_row = colour(name)
            if np.isfinite([low, high]).all():
                line: dict[str, Any] = {"linewidth": 5, "alpha": 0.35, "solid_capstyle": "round"}
                axes.plot([100 * low, 100 * high], [place, place], color=of_row, **line)
            axes.plot(100 * value, place, "o", color=of_row, markersize=7)
        axes.axvline(0, **DASHED)
        _named_rows(axes, [name for name, *_ in rows])
        axes.set_xlabel("points ahead")

    return svg(draw, 3.6, 0.6 + 0.28 * len(rows))


def pairs(points: Sequence[tuple[float, float, str]], x_label: str, y_label: str) -> str:
    """Draw points, each given as x, y and a colour."""

    def draw(axes: Axes) -> None:
        x, y, colours = zip(*points, strict=True)
        axes.scatter(x, y, c=colours, s=22, linewidths=0)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)

    return svg(draw, 4.2, 2.8)


def intervals(rows: Sequence[tuple[str, float, Sequence[float]]], chance: float) -> str:
    """Draw scores with their intervals, a row for each representation, and `chance` as a dashed line.

    The axis says where it begins, if that is not at 0.
    """

    def draw(axes: Axes) -> None:
        for place, (name, value, (low, high)) in enumerate(rows):
            of_row = colour(name)
            line: dict[str, Any] = {"linewidth": 5, "alpha": 0.35, "solid_capstyle": "round"}
            axes.plot([100 * low, 100 * high], [place, place], color=of_row, **line)
            axes.plot(100 * value, place, "o", color=of_row, markersize=7)
        axes.axvline(100 * chance, **DASHED)
        _named_rows(axes, [name for name, _, _ in rows])
        low = min([chance, *(interval[0] for _, _, interval in rows)])
        high = max(interval[1] for _, _, interval in rows)
        least = 100 * low - 2
        axes.set_xlim(least, min(100.5, 100 * high + 2))
        axes.set_xlabel(f"%, from {least:.0f} on" if least > 0 else "%")

    return svg(draw, 2.8, 0.6 + 0.28 * len(rows))


def label_curves(series: Mapping[str, Sequence[tuple[int, float, float, float]]], label: str) -> str:
    """Draw a score over numbers of labels; a point of a representation is number, score, low and high."""

    def draw(axes: Axes) -> None:
        for name, points in series.items():
            labels, value, low, high = np.array(points).T
            axes.plot(labels, 100 * value, "o-", color=colour(name), linewidth=1.4, markersize=3)
            axes.fill_between(labels, 100 * low, 100 * high, color=colour(name), alpha=0.12, linewidth=0)
        axes.set_xscale("log")
        ticks = sorted({int(point[0]) for points in series.values() for point in points})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45)
        axes.minorticks_off()
        axes.set_xlabel("labelled images")
        axes.set_ylabel(label)

    return svg(draw, 4.6, 3.0)


def scatter(points: NDArray[np.floating], labels: NDArray[np.integer], colours: Sequence[str]) -> str:
    """Draw points (n, 2) in the colours of their labels (n,); label -1 is grey."""

    def draw(axes: Axes) -> None:
        # In random order, so that no class covers the others.
        order = generator(0).permutation(len(points))
        chosen = [colours[label] if label >= 0 else UNLABELLED for label in labels[order]]
        x, y = points[order].T
        axes.scatter(x, y, c=chosen, s=9, alpha=0.7, linewidths=0, rasterized=True)
        hide_axes(axes)

    return svg(draw, 3.6, 3.0)


def spectrum(eigenvalues: Mapping[str, Sequence[float]]) -> str:
    """Draw the eigenvalues of each representation's covariance as shares of their sum, on log-log axes."""

    def draw(axes: Axes) -> None:
        for name, values in eigenvalues.items():
            share = np.asarray(values) / (np.sum(values) or 1)
            share = share[share > 1e-9]
            axes.loglog(np.arange(1, len(share) + 1), share, color=colour(name), linewidth=1.6)
        axes.set_xlabel("direction")
        axes.set_ylabel("share of the variance")

    return svg(draw, 4.2, 2.5)


def _named_rows(axes: Axes, names: Sequence[str]) -> None:
    """Give each row of a figure its name, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _step_axes(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))


def hide_axes(axes: Axes) -> None:
    """Remove the axes of a map whose directions have no meaning."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def svg(draw: Any, width: float, height: float) -> str:
    """Return an SVG element of `width` × `height` inches, drawn by `draw(axes)`, without metadata."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return text.replace(INK, "currentColor")
