"""Read a table row by row: CSV with any common separator, or Parquet by the file's extension."""

import contextlib
import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error
from isotorus.nearest_name import nearest

Row = tuple[str, dict[str, Any]]
"""Where the row is, such as "line 7", and its cells by column."""

_ROWS_AT_ONCE = 2**14
_SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
_LONGEST_HEADER = 2**20
_MOST_SHOWN = 20
_ENCODINGS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Encodings by the byte-order mark at the beginning of a file."""
_NO_TEXT = {
    b"PK\x03\x04": "a spreadsheet or another zip file; save the table as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an Excel file; save the table as CSV in UTF-8",
    b"\x1f\x8b": "compressed; unpack it first (gunzip)",
    b"PAR1": "a Parquet file; give it a name that ends in .parquet",
}


def read(file: Path, wanted: Mapping[str, str], *, only: bool = False) -> Iterator[Row]:
    """Yield the rows of a table; rows whose cells are all empty are left out.

    `wanted` are the columns that must be there, with the option that names each. With `only`, other columns
    are not returned. Cells of a CSV are text; those of a Parquet file have their type, None for null. Raises
    `UserError` if the file cannot be read, lacks a column, or has one of its names twice.
    """
    with contextlib.suppress(OSError):  # the reading below reports it
        foreign_files.open_binary(file, file.resolve().parent).close()  # a pipe would be waited for
    return (_read_parquet if file.suffix.lower() == ".parquet" else _read_csv)(file, wanted, only)


def _read_csv(file: Path, wanted: Mapping[str, str], only: bool) -> Iterator[Row]:
    """Yield the rows of a CSV; a line `sep=;`, or else the header, says what separates the cells."""
    line = 0
    try:
        with file.open("rb") as binary:
            start = binary.read(4)
        for magic, what in _NO_TEXT.items():
            if start.startswith(magic):
                raise UserError(f"{file} is {what}")
        encoding = next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), "utf-8")
        with file.open(newline="", encoding=encoding) as text:
            separator, lines, line = _separator(file, text, wanted)
            rows = csv.reader(_without_nul(file, lines), delimiter=separator, strict=True)
            header = next(rows, [])
            names = _names(file, header, wanted, separator)
            names = {name: names[name] for name in (wanted if only else names)}
            before, line = line, line + rows.line_num
            for cells in rows:
                here, line = line + 1, before + rows.line_num
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) > len(header) and not any(cells[len(header) :]):
                    cells = cells[: len(header)]
                if len(cells) != len(header):
                    raise UserError(
                        f"{file}, row {here}, has {len(cells)} cells, the first row {len(header)} (they are "
                        f"separated by {_SEPARATORS.get(separator, repr(separator))}); fix it"
                    )
                yield f"line {here}", {name: cells[i] for name, i in names.items()}
    except OSError as error:
        raise from_os_error(error, f"reading the table {file}") from error
    except UnicodeError as error:
        raise UserError(f"{file} is not a CSV in UTF-8 ({error}); save it as one") from None
    except csv.Error as error:
        raise UserError(
            f'{file} is not a CSV in UTF-8: the row after line {line}: {error}; is a quote (") not closed?'
        ) from None


def _separator(file: Path, text: TextIO, wanted: Iterable[str]) -> tuple[str, Iterator[str], int]:
    """Return the separator of the cells, all lines from the header on, and the number of lines before it.

    The separator is the first of ',', ';', tab and '|' with which the header has all `wanted` columns;
    otherwise the one with which it has most of them, or most columns at all.
    """
    head, before = text.readline(_LONGEST_HEADER), 0
    while head and not head.strip():
        head, before = text.readline(_LONGEST_HEADER), before + 1
    if not head:
        raise UserError(f"{file} is empty; expected a first row with the names of the columns")
    chosen = re.fullmatch(r"sep=(.)\s*", head)
    if chosen:
        head, before = text.readline(_LONGEST_HEADER), before + 1

    def fit(separator: str) -> tuple[int, int]:
        try:
            names = [name.strip() for name in next(csv.reader([head], delimiter=separator), [])]
        except csv.Error:
            return 0, 0
        return len(set(wanted) & set(names)), len(names)

    separator = chosen[1] if chosen else max(_SEPARATORS, key=fit)
    return separator, itertools.chain([head], text), before


def _without_nul(file: Path, lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines; raise `UserError` for one with a NUL, which no text has."""
    for line in lines:
        if "\0" in line:
            raise UserError(
                f"{file} is not a CSV in UTF-8: it holds NUL bytes, as UTF-16 without a byte-order mark and "
                "damaged files do; save it again in UTF-8"
            )
        yield line


def _names(file: Path, header: Sequence[str], wanted: Mapping[str, str], separator: str) -> dict[str, int]:
    """Return the position of each column by its name.

    Blanks around the names in `wanted` are ignored. If several columns have no name, they are left out.
    """
    unnamed = [i for i, name in enumerate(header) if not name.strip()]
    drop = set(unnamed) if len(unnamed) > 1 else set()
    kept = [(i, name) for i, name in enumerate(header) if i not in drop]
    exact = {name for _, name in kept}
    named = [(i, name if name in exact & set(wanted) else _bare(name, wanted)) for i, name in kept]
    apart = "" if separator == "," else f" (separated by {_SEPARATORS.get(separator, repr(separator))})"
    check_columns(file, [name for _, name in named], wanted, apart)
    return {name: i for i, name in named}


def _bare(name: str, wanted: Mapping[str, str]) -> str:
    """Return a column's name without blanks around it if that is one of the wanted names."""
    return name.strip() if name.strip() in wanted else name


def _read_parquet(file: Path, wanted: Mapping[str, str], only: bool) -> Iterator[Row]:
    """Yield the rows of a Parquet file."""
    # Imported here: pyarrow is slow to import, and only Parquet files need it.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            check_columns(file, schema.names, wanted)
            for field in schema:
                if _holds_binary(field.type) and not (only and field.name not in wanted):
                    raise UserError(
                        f"{file}: column {field.name!r} holds binary data, which JSON cannot carry; "
                        "leave that column out"
                    )
            columns = list(wanted) if only else None
            number = 0
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns):
                values = [cells_of(column) for column in batch.columns]
                for row in zip(*values, strict=True):
                    cells = dict(zip(batch.schema.names, row, strict=True))
                    number += 1
                    if any(cell not in (None, "") for cell in cells.values()):
                        yield f"row {number}", cells
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, OSError) and error.errno:
            raise from_os_error(error, f"reading the table {file}") from error
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not a Parquet file that can be read ({reason}); save it again") from None


def cells_of(column: Any) -> list[Any]:
    """Return the values of an Arrow column; 0.1 stays 0.1, also where it is stored in 32 bits.

    Dates and times that Python does not have, such as those of nanoseconds or of the year 10000, are text.
    """
    if str(column.type) != "float":
        values: list[Any]
        try:
            values = column.to_pylist()
        except (ValueError, OverflowError):
            values = column.cast("string").to_pylist()
        return values
    return [None if x is None else float(str(np.float32(x))) for x in column.to_pylist()]


def _holds_binary(kind: Any) -> bool:
    """Return whether an Arrow type is binary or contains a binary type."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return "binary" in str(kind) if not inner else any(map(_holds_binary, inner))


def check_columns(file: Path, present: Sequence[str], wanted: Mapping[str, str], apart: str = "") -> None:
    """Raise `UserError` if a needed column is missing or two columns have the same name."""
    for name, option in wanted.items():
        if name not in present:
            near = nearest(name, present, 0.4)
            guess = f"; did you mean {near!r}?" if near else ";"
            shown = ", ".join(present[:_MOST_SHOWN]) + ", …" * (len(present) > _MOST_SHOWN)
            raise UserError(
                f"{file} has no column {name!r}, its columns are {shown}{apart}{guess} choose with {option}"
            )
    if len(set(present)) < len(present):
        twice = next(name for name in present if present.count(name) > 1)
        raise UserError(f"{file} has two columns {twice!r}; rename or remove one of them")
