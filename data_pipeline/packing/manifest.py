"""Read a table that lists images, CSV or Parquet by the file's extension, one row at a time."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isotorus.errors import UserError, from_os_error
from isotorus.names import nearest

_ROWS_AT_ONCE = 2**14


@dataclass(frozen=True)
class Columns:
    """Names of the columns for the image path, the label and, optionally, the group."""

    image: str = "image"
    label: str = "label"
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table, which stands for one image."""

    image: str
    label: str
    """Class name; "" if the image has no label."""
    group: str
    extra: str
    """All columns except image and label, as JSON; "" if there are none."""


def read(file: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a table; an empty cell, a null or a NaN means no label and no group.

    In `extra`, numbers and booleans of a Parquet file keep their type; cells of a CSV file are text. Raises
    `UserError` if the file cannot be read, lacks a column, or has no rows.
    """
    rows = 0
    for cells in (
        _read_parquet(file, columns) if file.suffix.lower() == ".parquet" else _read_csv(file, columns)
    ):
        rows += 1
        image, label = _text(cells.pop(columns.image)), _text(cells.pop(columns.label)).strip()
        group = _text(cells[columns.group]).strip() if columns.group else ""
        extra = json.dumps(_plain(cells), sort_keys=True, ensure_ascii=False, default=str) if cells else ""
        yield Row(image, label, group, extra)
    if not rows:
        raise UserError(f"{file} lists no images; expected a row for each")


def _read_csv(file: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV file by column name."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            rows = csv.reader(text, strict=True)
            names = next(rows, [])
            _check_columns(file, names, columns)
            for number, cells in enumerate(rows, start=2):
                if not cells:
                    continue  # skip empty lines
                if len(cells) != len(names):
                    raise UserError(
                        f"{file}, row {number}, has {len(cells)} cells, the first row {len(names)}; fix it"
                    )
                yield dict(zip(names, cells, strict=True))
    except OSError as error:
        raise from_os_error(error, f"reading the labels {file}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a CSV in UTF-8 ({error}); save it as one") from None


def _read_parquet(file: Path, columns: Columns) -> Iterator[dict[str, Any]]:
    # Imported here: pyarrow is slow to import, and only Parquet files need it.
    """Yield the rows of a Parquet file by column name."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            _check_columns(file, schema.names, columns)
            for field in schema:
                if _holds_binary(field.type):
                    raise UserError(
                        f"{file}: column {field.name!r} holds binary data, which JSON cannot carry; "
                        "leave that column out"
                    )
            for batch in table.iter_batches(_ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise from_os_error(error, f"reading the labels {file}") from error
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not a Parquet file that can be read ({reason}); save it again") from None


def _holds_binary(kind: Any) -> bool:
    """Return whether an Arrow type is binary or contains a binary type."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return "binary" in str(kind) if not inner else any(map(_holds_binary, inner))


def _check_columns(file: Path, present: Sequence[str], columns: Columns) -> None:
    """Raise `UserError` if a needed column is missing or two columns have the same name."""
    options = {"--image-column": columns.image, "--label-column": columns.label}
    if columns.group is not None:
        options["--group-column"] = columns.group
    for option, name in options.items():
        if name not in present:
            near = nearest(name, present, 0.4)
            guess = f"; did you mean {near!r}?" if near else ""
            raise UserError(
                f"{file} has no column {name!r}, its columns are {', '.join(present)}{guess} "
                f"Choose with {option}"
            )
    if len(set(present)) < len(present):
        twice = next(name for name in present if present.count(name) > 1)
        raise UserError(f"{file} has two columns {twice!r}; rename or remove one of them")


def _text(value: Any) -> str:
    """Return a cell as text; a float that is a whole number becomes an integer first.

    Columns of integers with missing values are often stored as floats.
    """
    value = _plain(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    """Return a value with null in place of NaN and infinity, which JSON does not have."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
    return value
