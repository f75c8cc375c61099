"""The table that `eval compare` prints."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eval_suite import terminal
from eval_suite.layers.compare.conclusion import best_pairs, same_depth


def show(found: Mapping[str, Any]) -> None:
    """Print a row for each layer of A, with the layer of B that it was compared with, and the conclusion."""
    a, b = found["a"], found["b"]
    title = f"A: {a['name']}, step {a['step']}; B: {b['name']}, step {b['step']}"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)
    table.add_column("layer" if same_depth(found["pairs"]) else "layer of A, most alike of B")
    for heading in ("CKA", "un-\ntrained", "Procrustes", "un-\ntrained", "near in\ncommon", "un-\ntrained"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in best_pairs(found["pairs"]):
        cells = []
        for name in ("cka", "procrustes", "neighbours"):
            cells += [_interval(row[name]), _number(row[name]["untrained"])]
        table.add_row(row["a"] if row["a"] == row["b"] else f"{row['a']}, {row['b']}", *cells)
    Console().print(table)
    for name, why in found["left_out"].items():
        terminal.tell(f"left out: {name}: {why}", quiet=False)
    terminal.tell(found["conclusion"], quiet=False)


def _interval(estimate: Mapping[str, Any]) -> str:
    """Write a value with half the width of its interval."""
    if None in (estimate["value"], estimate["low"], estimate["high"]):
        return _number(estimate["value"])
    return f"{estimate['value']:.2f} ± {(estimate['high'] - estimate['low']) / 2:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
