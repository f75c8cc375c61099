"""Read a table that lists images: one row for each, with its label and, optionally, its group and its set."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from typing import Any

from data_pipeline.tables import cells, split_names, table
from isotorus.errors import UserError, one_line


@dataclass(frozen=True)
class Columns:
    """Names of the columns for the image path, the label and, optionally, the group and the set."""

    image: str = "image"
    label: str = "label"
    group: str | None = None
    split: str | None = None
    """Column that says for each image whether it is for train, val or test."""

    @property
    def needed(self) -> dict[str, str]:
        """The columns that a table must have, with the option that names each."""
        options = {
            self.image: "--image-column",
            self.label: "--label-column",
            self.group: "--group-column",
            self.split: "--split-column",
        }
        return {name: option for name, option in options.items() if name is not None}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table, which stands for one image."""

    image: str
    label: str
    """Class name; "" if the image has no label."""
    group: str
    """Name of its group; "" if it has none."""
    split: str
    """Name of its set: train, val or test; "" without a split column."""
    extra: str
    """All columns except image and label, as JSON; "" if there are none."""


def read(file: Path, columns: Columns, missing: Sequence[str] | None = None) -> list[Row]:
    """Return the rows of a table; `data_pipeline.tables.cells` says what a cell means.

    In `extra`, numbers and booleans of a Parquet file keep their type; cells of a CSV file are text. An image
    that several equal rows name is returned once, with a note on stderr. Raises `UserError` if the file
    cannot be read, lacks a column, has no rows, names no set for a row, or has rows that contradict each
    other.
    """
    places, images, labels, groups, sides, extras = [], [], [], [], [], []
    for place, row in table.read(file, columns.needed):
        image = row[columns.image]
        places.append(place)
        images.append("" if image is None else str(image))
        labels.append(row[columns.label])
        groups.append(row[columns.group] if columns.group else None)
        sides.append(_side(file, place, columns.split, row) if columns.split else "")
        for name in {columns.image, columns.label}:
            del row[name]
        extras.append(_extra(file, place, row) if row else "")
    if not images:
        raise UserError(f"{file} lists no images; expected a row for each")
    rows = [
        Row(image, intern(label), intern(group), side, extra)
        for image, label, group, side, extra in zip(
            images, cells.labels(labels, missing), cells.groups(groups, missing), sides, extras, strict=True
        )
    ]
    return _each_once(file, rows, places)


def _extra(file: Path, place: str, row: dict[str, Any]) -> str:
    """Return the other columns of a row as JSON; raise `UserError` if they cannot be written as JSON."""
    try:
        return json.dumps(without_nan(row), sort_keys=True, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{file}, {place}: its columns cannot be kept as JSON ({error}); leave out the one that is "
            "nested too deeply or has no text"
        ) from None


def _side(file: Path, place: str, column: str, row: dict[str, Any]) -> str:
    """Return the set that a row names; raise `UserError` if it names none."""
    name = split_names.side(row[column])
    if name is None:
        raise UserError(
            f"{file}, {place}: {str(row[column])[:40]!r} in column {column!r} is no set of a split; expected "
            f"one of {split_names.accepted()}"
        )
    return name


def _each_once(file: Path, rows: list[Row], places: list[str]) -> list[Row]:
    """Return the rows; of several rows that agree about one image, only the first.

    Raises `UserError` if two rows give one image different labels, groups or sets.
    """
    first: dict[str, int] = {}
    kept, again = [], []
    for i, row in enumerate(rows):
        name = cells.one_path(row.image)
        earlier = first.setdefault(name, i)
        if earlier == i:
            kept.append(row)
            continue
        before = rows[earlier]
        for what, ours, theirs in (
            ("label", row.label, before.label),
            ("group", row.group, before.group),
            ("set", row.split, before.split),
        ):
            if ours != theirs:
                raise UserError(
                    f"{file}: {places[earlier]} and {places[i]} both name {row.image!r}, with different "
                    f"{what}s {theirs!r} and {ours!r}; keep the right one"
                )
        again.append(f"{places[i]} repeats {places[earlier]}, {one_line(row.image[:200])}")
    if again:
        more = f", and {len(again) - 1} more" if len(again) > 1 else ""
        print(f"note: {file} names images twice, which are packed once: {again[0]}{more}", file=sys.stderr)
    return kept


def without_nan(value: Any) -> Any:
    """Return a value with null in place of NaN and infinity, which JSON does not have."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {name: without_nan(inner) for name, inner in value.items()}
        case list():
            return [without_nan(inner) for inner in value]
    return value
