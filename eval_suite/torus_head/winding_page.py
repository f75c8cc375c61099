"""The page and the table of `eval_suite winding`: winding vectors, sentences, and curves of angles."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text
from torch import Tensor

from eval_suite.report.figures import CLASS_COLOURS, INK, svg
from eval_suite.report.pages import template
from eval_suite.report.pictures import data_uri

ANGLES = 2
"""Number of angles of a path whose curves are drawn, those that turn most."""
CURVES = 40
"""Largest number of images whose curves are drawn."""
STRIP = 12
"""Number of pictures that show an image along a path."""
DOES = {
    "rotation": "the image turns once",
    "shift_x": "the image moves once round to the right",
    "shift_y": "the image moves once round downwards",
    "hue": "the hue turns once",
}
"""What happens along each path of `image_paths.PATHS`, as part of a sentence."""


def render(contents: Mapping[str, Any]) -> str:
    """Return the page for results in the form of winding.json, with pictures still in them."""
    checkpoints = []
    for checkpoint in contents["checkpoints"]:
        paths = [
            {
                "name": name,
                "found": path,
                "reading": reading(name, path),
                "figures": [
                    (int(i) + 1, Markup(curves(rows, path["closed"]))) for i, rows in path["curves"].items()
                ],
            }
            for name, path in _paths(checkpoint).items()
        ]
        checkpoints.append({"title": f"{checkpoint['name']}, step {checkpoint['step']:,}", "paths": paths})
    return template("winding").render(checkpoints=checkpoints, written=contents, vector=vector)


def table(checkpoint: Mapping[str, Any]) -> Table:
    """Return a table of one checkpoint for the terminal, with a row for each path."""
    title = Text(f"{checkpoint['name']}, step {checkpoint['step']}")
    shown = Table(title=title, box=SIMPLE, pad_edge=False, collapse_padding=True)
    for column in ("", "winding vector"):
        shown.add_column(column, no_wrap=True)
    for column in ("images\n%", "\nmargin", "ambiguous\n%", "same at half\nthe samples %"):
        shown.add_column(column, justify="right")
    for name, path in _paths(checkpoint).items():
        shown.add_row(
            name,
            vector(path),
            f"{100 * path['share']:.0f}",
            f"{path['margin']['median']:.2f}",
            f"{100 * path['ambiguous']:.0f}",
            f"{100 * path['same_at_half']:.0f}",
        )
    return shown


def reading(name: str, path: Mapping[str, Any]) -> str:
    """Say in a sentence how often the head winds along a path."""
    if not path["closed"]:
        number = ", ".join(f"{turns:+.2f}" for turns in path["numbers"][0][:8])
        return f"Along the frames the angles turn by {number} turns."
    does, share = DOES.get(name, "the frames go round once"), f"{100 * path['share']:.0f} % of the images"
    if path["images"] == 1:
        share = "the one sequence"
    if path["share"] < 0.5:
        return f"When {does}, images disagree: the commonest winding vector is that of {share}."
    if path["times"] == 0:
        return f"When {does}, the head does not go round: its path can be shrunk to a point for {share}."
    times = "once" if path["times"] == 1 else f"{path['times']} times"
    return f"When {does}, the head winds {times}, by {vector(path)}, for {share}."


def vector(path: Mapping[str, Any]) -> str:
    """Write the most common winding vector; for more than eight angles only those that wind."""
    numbers = path["vector"]
    if not path["closed"] and path["images"] == 1:
        return "(" + ", ".join(f"{turns:+.2f}" for turns in path["numbers"][0][:8]) + ")"
    if len(numbers) <= 8:
        return "(" + ", ".join(f"{n:+d}" if n else "0" for n in numbers) + ")"
    wound = [f"{n:+d} in angle {i + 1}" for i, n in enumerate(numbers) if n]
    return ", ".join(wound[:6]) + (", …" if len(wound) > 6 else "") if wound else f"0 in all {len(numbers)}"


def curves(rows: Sequence[Sequence[float]], closed: bool) -> str:
    """Draw as SVG how many turns an angle has made along the path, with one curve for each image."""

    def draw(axes: Axes) -> None:
        share = np.linspace(0, 1, len(rows[0]))
        ends = sorted({round(row[-1]) for row in rows}, key=abs)
        for row in rows:
            colour = CLASS_COLOURS[ends.index(round(row[-1])) % len(CLASS_COLOURS)]
            axes.plot(share, row, color=colour, linewidth=0.9, alpha=0.55)
        if closed:
            for end in ends:
                axes.axhline(end, color=INK, linewidth=0.6, linestyle=(0, (3, 3)), alpha=0.5)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of the path")
        axes.set_ylabel("turns")
        axes.yaxis.set_major_locator(MaxNLocator(5))

    return svg(draw, 3.6, 2.3)


def picture(image: Tensor, size: int = 64) -> str:
    """Return a float image (C, H, W) in [0, 1] as a data URI."""
    pixels = (image.clamp(0, 1) * 255).byte().cpu().permute(1, 2, 0).numpy()
    drawn = Image.fromarray(pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3])
    return data_uri(drawn.resize((size, size), Image.Resampling.BILINEAR), "JPEG")


def _paths(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return all measured paths of a checkpoint by name, the sequence of frames among them."""
    frames = {"frames": checkpoint["frames"]} if "frames" in checkpoint else {}
    return {**checkpoint.get("paths", {}), **frames}
