"""The runs of results.jsonl as rows of numbers: results.csv, one row a run, and checkpoints.csv."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KEPT_APART = ("overrides", "checkpoints", "bars")
"""Parts of a row that are no columns."""


def by_run(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each run: what was measured last, with the training that an earlier row has.

    The chosen point of a grid is measured twice, on val to choose it and then with all measures.
    """
    runs: dict[str, Row] = {}
    for row in rows:
        before = runs.get(row["name"], {})
        runs[row["name"]] = {**before, **row}
        if row.get("cpu_seconds") is None and before:
            runs[row["name"]]["cpu_seconds"] = before.get("cpu_seconds")
    return list(runs.values())


def checkpoints(rows: Iterable[Row]) -> list[Row]:
    """Return a row for each checkpoint that was measured beside the last one of a run."""
    about = ("name", "objective", "seed")
    return [
        {key: row[key] for key in about} | checkpoint
        for row in rows
        for checkpoint in row.get("checkpoints", [])
    ]


def flat(value: Any, path: str = "") -> Row:
    """Return the numbers and texts of a nested row by their keys, joined by "/".

    A list of numbers is one text, its numbers separated by spaces; an interval is two columns, `_low` and
    `_high`. Lists of anything else are left out.
    """
    if isinstance(value, Mapping):
        columns: Row = {}
        for key, x in value.items():
            if key == "p_values":
                columns |= _least_p(x, f"{path}/{key}")
            elif key not in KEPT_APART:
                columns |= flat(x, f"{path}/{key}" if path else str(key))
        return columns
    if not isinstance(value, list):
        return {} if value is None else {path: value}
    if not all(isinstance(x, int | float) for x in value):
        return {}
    if len(value) == 2 and "interval" in path:
        return {f"{path}_low": value[0], f"{path}_high": value[1]}
    return {path: " ".join(f"{x:.5g}" for x in value)}


def _least_p(fields: Mapping[str, Sequence[Sequence[float]]], path: str) -> Row:
    """Return the smallest p-value of the bars of each dimension from 1 on, for homology over each field."""
    return {
        f"{path}/{field}/{dimension}": min(of)
        for field, dimensions in fields.items()
        for dimension, of in enumerate(dimensions)
        if dimension and of
    }


def write(file: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV, with every column that one of them has."""
    flattened = [flat(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flattened for key in row))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flattened)
