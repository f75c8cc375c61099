"""Columns of cells to targets: what kind they are, the names of classes or columns, and the values."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tables import cells
from isotorus.errors import UserError

Kind = Literal["multiclass", "multilabel", "regression"]
_MANY_NUMBERS = 8
"""Different numbers in a column from which texts among them are taken for mistakes, not for classes."""
_TRUTH = {"0": 0, "1": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class Encoded:
    """The targets in the rows of a table."""

    kind: Kind
    names: list[str]
    """Names of the classes or columns."""
    values: NDArray[Any]
    """Class indices (n,) int64, 0s and 1s (n, columns) int64, or numbers (n, columns) float64."""
    filled: NDArray[np.bool_]
    """Which rows (n,) have a value in every column."""


def encode(
    file: str,
    columns: Mapping[str, Sequence[Any]],
    places: Sequence[str],
    kind: Kind | None = None,
    missing: Sequence[str] | None = None,
    *,
    whole_numbers_are_classes: bool = False,
) -> Encoded:
    """Return the targets in columns of cells, whose meaning `data_pipeline.tables.cells` decides.

    Without `kind` it follows from the values: lists in one column are labels that may occur together; text,
    and whole numbers that count up from 0 or 1 without a gap, or all whole numbers with
    `whole_numbers_are_classes`, are classes; several columns of 0, 1, true and false are labels that may
    occur together; other numbers are predicted by regression. `file` and `places`, such as "line 3", are for
    messages. Raises UserError for a value that does not fit the kind.
    """
    texts = {name: cells.values(column, missing) for name, column in columns.items()}
    if len(columns) == 1:
        (name, column), *_ = columns.items()
        lists, labels = cells.label_lists(column, missing), cells.labels(column, missing)
        if kind is None:
            kind = _kind_of_one(labels, lists, texts[name], whole_numbers_are_classes)
            if kind == "multiclass":
                _refuse_nearly_numbers(file, name, texts[name], places, whole_numbers_are_classes)
        if kind == "multiclass":
            return _classes(labels)
        if kind == "multilabel" and not all(_truth(text) is not None for text in texts[name] if text):
            return _label_sets(lists)
    elif kind is None:
        flags = all(_truth(text) is not None for column in texts.values() for text in column if text)
        kind = "multilabel" if flags else "regression"
    read = _truth if kind == "multilabel" else cells.number
    values = np.zeros((len(places), len(texts)))
    for c, (name, column) in enumerate(texts.items()):
        for r, text in enumerate(column):
            value = read(text)
            if text and value is None:
                expected = "0 or 1" if kind == "multilabel" else "a finite number"
                raise UserError(
                    f"{file}, {places[r]}: {text[:40]!r} in column {name!r}, expected {expected} for {kind} "
                    "targets; correct it, choose another kind or column, or name it in --missing"
                )
            values[r, c] = value or 0
    filled = np.array([all(row) for row in zip(*texts.values(), strict=True)], dtype=bool)
    return Encoded(kind, list(texts), values.astype(np.int64) if kind == "multilabel" else values, filled)


def in_order(names: set[str]) -> list[str]:
    """Return class names in the order of their index: by value if all are whole numbers, else by name."""
    if all(cells.whole(name) is not None for name in names):
        return sorted(names, key=lambda name: (cells.whole(name), name))
    return sorted(names)


def _kind_of_one(
    labels: list[str], lists: list[tuple[str, ...]], texts: list[str], whole_numbers_are_classes: bool
) -> Kind:
    """Decide the kind of the targets in a single column by its values."""
    if any(len(several) > 1 for several in lists):
        return "multilabel"
    if not all(cells.is_number(text) for text in texts if text):
        return "multiclass"
    names = set(labels) - {""}
    whole = [int(name) for name in names if re.fullmatch(r"-?[0-9]{1,300}", name)]
    if len(whole) < len(names) or not names:
        return "regression" if names else "multiclass"
    counts_up = 0 <= min(whole) <= 1 and max(whole) - min(whole) == len(whole) - 1
    return "multiclass" if counts_up or whole_numbers_are_classes else "regression"


def _refuse_nearly_numbers(
    file: str, name: str, texts: list[str], places: Sequence[str], whole_numbers_are_classes: bool
) -> None:
    """Raise UserError if most values are numbers to predict, but a few other ones, such as "<5", would make
    a class of each number; also if the numbers have decimal commas.
    """
    values = set(texts) - {""}
    with_point = {text: text.replace(",", ".") for text in values}
    numbers = [with_point[text] for text in values if cells.is_number(with_point[text])]
    texts_too = len(numbers) < len(values)
    if 2 * len(numbers) <= len(values) or (texts_too and len(numbers) < _MANY_NUMBERS):
        return
    labels = cells.labels(numbers)
    lists: list[tuple[str, ...]] = [(label,) for label in labels]
    if _kind_of_one(labels, lists, numbers, whole_numbers_are_classes) != "regression":
        return
    first = next(i for i, text in enumerate(texts) if text and not cells.is_number(text))
    raise UserError(
        f"{file}, {places[first]}: {texts[first][:40]!r} in column {name!r}, where most values are numbers; "
        "correct it (decimals need a point), name it in --missing, or say --target-kind multiclass"
    )


def _truth(text: str) -> int | None:
    """Return 1 or 0 for a text that says whether a label applies, else None."""
    whole = cells.whole(text)
    return _TRUTH.get(text.lower() if whole is None else str(whole))


def _classes(labels: list[str]) -> Encoded:
    names = in_order(set(labels) - {""})
    index = {name: i for i, name in enumerate(names)}
    values = np.array([index.get(label, -1) for label in labels], dtype=np.int64)
    return Encoded("multiclass", names, values, values >= 0)


def _label_sets(lists: list[tuple[str, ...]]) -> Encoded:
    """Return a column for each label that occurs; the name of a joint class is split into its labels."""
    apart = [{part for name in several for part in name.split(cells.JOINT)} for several in lists]
    names = in_order(set().union(*apart))
    values = np.array([[name in labels for name in names] for labels in apart], dtype=np.int64)
    return Encoded("multilabel", names, values, np.array([bool(labels) for labels in apart], dtype=bool))
