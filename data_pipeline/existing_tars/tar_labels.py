"""Labels in tar files: a whole number is the index of a class, any other text is the name of a class.

What a text means is decided by `data_pipeline.tables.cells`: 3.0 is the number 3, 03 is a name, NA is no
label.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.tables import cells
from isotorus.errors import UserError, from_os_error
from isotorus.nearest_name import nearest

Label = int | str | None
"""None stands for a sample without a label."""

LARGEST = 2**20
"""Most bytes of a file in a tar that a label is read from."""
_MOST_CLASSES = 1_000_000
_LONGEST = 1000


@dataclass(frozen=True)
class Labels:
    """The labels in one tar file."""

    path: str
    largest: int
    """The largest number; -1 if no label is a number."""
    names: list[str]
    """The labels that are names, sorted, each once."""


def parse_label(content: bytes, field: str | None, missing: Sequence[str] | None = None) -> Label:
    """Return the label in a text file, or in the `field` of a JSON file.

    A missing or empty field, and what `missing` lists, means no label. Raises ValueError, with the reason in
    one line, if the content cannot be read.
    """
    if field is None:
        try:
            return _from_text(content.decode(), missing)
        except UnicodeDecodeError:
            raise ValueError("is not text in UTF-8") from None
    value = _record(content).get(field)
    members = value if isinstance(value, list) else [value]
    if any(isinstance(member, list | dict) for member in members):
        raise ValueError(f"holds a {type(value).__name__} as {field!r}, expected a number or text")
    if isinstance(value, list) and len(value) != 1:
        return cells.labels([value], missing)[0] or None
    return _from_text(cells.as_text(members[0]), missing)


def parse_group(content: bytes, field: str, missing: Sequence[str] | None = None) -> str:
    """Return the group in the `field` of a `.json` file, "" for none; raise ValueError if it is not JSON."""
    return cells.groups([_record(content).get(field)], missing)[0]


def respelled(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return the class of each label that is a name, as `data_pipeline.tables.cells` spells it.

    TRUE and true are one class, and so are 0.5 and 0.50. Names among the `known` classes stay as they are,
    and others take their spelling.
    """
    by_rule = cells.respelled(known)
    spelled = zip(names, cells.values(names, missing=()), strict=True)
    return {name: name if name in by_rule else by_rule.get(other, other) for name, other in spelled}


def ending_of(field: str | None, extension: str | None) -> str:
    """Return what the names of files with labels end in, given the options --label-key and
    --label-extension.
    """
    return extension or ("cls" if field is None else "json")


def label_stem(key: str, extension: str, ending: str) -> str | None:
    """Return the key that a file labels, None if its extension is not the `ending` of label files.

    With the ending "cls", `a.cls` labels a, and `a.left.cls` labels a.left.
    """
    if extension == ending:
        return key
    return f"{key}.{extension.removesuffix('.' + ending)}" if extension.endswith("." + ending) else None


def fields(content: bytes) -> list[str]:
    """Return the names of the fields of a `.json` file; none if it has no fields."""
    try:
        return list(_record(content))
    except ValueError:
        return []


def are_values(names: Iterable[str]) -> bool:
    """Return whether labels are numbers of which some have fractions; then whole ones are no indices."""
    known = list(names)
    return all(map(cells.is_number, known)) and any(cells.whole(name) is None for name in known)


def _record(content: bytes) -> dict[str, Any]:
    """Return the fields of a `.json` file; raise ValueError with the reason if there are none."""
    try:
        record: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object of fields")
    return record


def _from_text(text: str, missing: Sequence[str] | None) -> Label:
    """Return the label in a text; raise ValueError if it is too long, not printable or not a valid class
    number.
    """
    text = cells.one_form(text.strip())
    if len(text) > _LONGEST:
        raise ValueError(f"holds {len(text)} characters, expected the number or name of a class")
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed, expected the number or name of a class")
    if cells.is_missing(text, missing):
        return None
    number = cells.whole(text)
    if number is None:
        return text
    if not 0 <= number < _MOST_CLASSES:
        raise ValueError(f"holds class {number}, expected a number from 0 to {_MOST_CLASSES - 1}")
    return number


def read_classes(file: Path) -> list[str]:
    """Read class names from a text file, one per line; raise `UserError` for empty or repeated names."""
    try:
        names = [line.strip() for line in file.read_text("utf-8-sig").rstrip().splitlines()]
    except OSError as error:
        raise from_os_error(error, "reading the class names") from error
    except UnicodeDecodeError:
        raise UserError(f"{file} is not text in UTF-8; give class names, one a line") from None
    if not names or "" in names or len(set(names)) < len(names):
        raise UserError(f"{file}: expected class names, one a line, none of them empty or there twice")
    return names


def classes_of(tars: Sequence[Labels], known: list[str], complete: bool) -> list[str]:
    """Return the classes of a data set: those that are `known`, then new ones, unless the known are
    `complete`.

    Classes that are only known by number get the number as name. Raises `UserError` if a label belongs to no
    class, or if some labels are numbers and others names and there is no complete list of classes.
    """
    numbered = known == [str(i) for i in range(len(known))]
    highest = max(tars, key=lambda tar: tar.largest)
    largest = highest.largest
    there = set(known)
    new = {name: tar.path for tar in tars for name in tar.names if name not in there}
    if complete or not numbered:
        if largest >= len(known):
            raise UserError(
                f"{highest.path} has labels up to {largest}, but there are {len(known)} class names; "
                "numbers count from 0: give a name for each with --classes"
            )
        if new and complete:
            name = min(new)
            near = nearest(name, known)
            raise UserError(
                f"{new[name]} has the label {name!r}, which is none of the {len(known)} class names"
                + (f"; did you mean {near!r}?" if near else "; add it to them")
            )
    elif new and (known or largest >= 0):
        raise UserError(
            f"some labels are numbers (up to {max(largest, len(known) - 1)}), some are names "
            f"({min(new)!r} in {new[min(new)]}); give the names in the order of the numbers with --classes"
        )
    if len(new) > _MOST_CLASSES:
        raise UserError(
            f"labels have {len(new)} different values, at most {_MOST_CLASSES} classes are possible"
        )
    return [*known, *map(str, range(len(known), largest + 1)), *sorted(new)]
