"""What one cell means as a label, a group or a target, whatever kind of file it is in.

The column decides, over all its cells that are not missing:

- all are whole numbers (`3`, `3.0`; no leading zero): numbers, so 1 and 1.0 are one label;
- all are numbers: numbers, so 0.5 and 0.50 are one label;
- all are true or false in any case: `True` and `False`;
- anything else, such as `007` or `A1`: text as it stands, so 01 and 1 are two labels.

Blanks at the ends of a cell do not count, and letters with accents are one letter however they are composed
(Unicode NFC). A list is several labels, in any order.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

MISSING = (
    *("NA", "N/A", "n/a", "<NA>", "#N/A", "#NA", "NaN", "nan", "NAN", "NaT"),
    *("NULL", "Null", "null", "None", "?"),
)
"""Cells that mean "no value" besides empty ones: what pandas, R and spreadsheets write. The case counts,
since `none` may be the name of a class."""
JOINT = "|"
"""Stands between the labels of a list in the name of their class."""

_WHOLE = re.compile(r"[+-]?(0|[1-9][0-9]{0,299})(\.0*)?")
_NOT_PLAIN = re.compile(r"//|/$|(^|/)\.(/|$)|^$")
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def labels(cells: Iterable[Any], missing: Sequence[str] | None = None) -> list[str]:
    """Return the class name of each cell of a column, "" for no label.

    `missing` are the cells that mean "no label"; without it they are `MISSING` and, where the column holds
    whole numbers that are otherwise not negative, -1. The labels of a list are sorted and joined by `JOINT`.
    """
    return [JOINT.join(found) for found in label_lists(cells, missing)]


def label_lists(cells: Iterable[Any], missing: Sequence[str] | None = None) -> list[tuple[str, ...]]:
    """Return the labels of each cell, sorted and each once; () for no label."""
    return _spelled(cells, MISSING if missing is None else missing, minus_one=missing is None)


def label_of(cells: Iterable[Any], missing: Sequence[str] | None = None) -> Callable[[Any], str]:
    """Return a function that gives the class name of a cell of a column, by the rule of `labels`.

    The cells are gone through once, and only the different ones are kept. The function raises KeyError for a
    cell that is not one of them.
    """
    absent, minus_one = (MISSING, True) if missing is None else (missing, False)
    members: dict[str, tuple[str, ...]] = {}  # of cells that are text, most of which are equal
    texts: set[str] = set()
    for cell in cells:
        if not isinstance(cell, str):
            texts.update(_members(cell))
        elif cell not in members:
            members[cell] = _members(cell)
            texts.update(members[cell])
    spelling = _spelling(texts, absent, minus_one)
    known = {cell: JOINT.join(_joined(found, spelling)) for cell, found in members.items()}
    return lambda cell: (
        known[cell] if isinstance(cell, str) else JOINT.join(_joined(_members(cell), spelling))
    )


def values(cells: Iterable[Any], missing: Sequence[str] | None = None) -> list[str]:
    """Return each cell of a column as the name of a group or a value to predict, "" for none.

    The rule is that of `labels`, but -1 is a value.
    """
    return [JOINT.join(found) for found in _spelled(cells, MISSING if missing is None else missing)]


def groups(cells: Iterable[Any], missing: Sequence[str] | None = None) -> list[str]:
    """Return the group that each cell names, "" for none.

    Each cell is spelled by itself: 12 and 12.0 are one patient whatever other patients are called, in this
    table or in the next.
    """
    return [group(cell, missing) for cell in cells]


def group(cell: Any, missing: Sequence[str] | None = None) -> str:
    """Return the group that a cell names, as `groups` does."""
    absent = MISSING if missing is None else tuple(missing)
    return _group_of_text(cell, absent) if isinstance(cell, str) else _group(cell, absent)


def _group(cell: Any, missing: tuple[str, ...]) -> str:
    return JOINT.join(_spelled([cell], missing)[0])


_group_of_text = lru_cache(maxsize=2**12)(_group)


def respelled(names: Sequence[str]) -> dict[str, str]:
    """Return the class names of a data set by their spelling under the rule of this module.

    Data sets that were packed before the rule may have names such as "1.0". A name that is spelled by the
    rule takes precedence over one that is not.
    """
    spelled = values(names, missing=())
    by_rule = dict(reversed(list(zip(spelled, names, strict=True))))
    return by_rule | {name: name for name in names}


def one_form(text: str) -> str:
    """Return text with its accents composed (Unicode NFC), as most systems write names of files."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def one_path(path: str) -> str:
    """Return the common spelling of paths that differ in slashes, blanks at their ends, or accents."""
    return one_form(plain_path(path.strip().replace("\\", "/")))


def plain_path(path: str) -> str:
    """Return `str(PurePosixPath(path))`, which is the path itself for nearly all paths, in less time."""
    return str(PurePosixPath(path)) if _NOT_PLAIN.search(path) else path


def number(text: str) -> float | None:
    """Return a text as a finite number; None if it is not one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def is_number(text: str) -> bool:
    """Return whether a text is spelled as a number; 007 is not, and inf is."""
    return bool(_NUMBER.fullmatch(text)) or text.lstrip("+-").lower() in ("inf", "infinity")


def whole(text: str) -> int | None:
    """Return the whole number in a text, such as 3 in "3.0"; None if it is not one or begins with 0."""
    return int(text.partition(".")[0]) if _WHOLE.fullmatch(text) else None


def is_missing(text: str, missing: Sequence[str] | None = None) -> bool:
    """Return whether a text means "no label"; -1 does so unless `missing` is given."""
    given = (*MISSING, "-1") if missing is None else missing
    return not text or text in given or (whole(text) is not None and whole(text) in map(whole, given))


def cell_list(text: str) -> tuple[str, ...]:
    """Split the value of an option such as --missing at its commas."""
    return tuple(part.strip() for part in text.split(","))


def as_text(cell: Any) -> str:
    """Return a cell that is no list as text; a float that is a whole number becomes an integer first.

    A float of less than 64 bits has the fewest digits that tell it from others of its type, such as 0.1.
    """
    if hasattr(cell, "item") and not isinstance(cell, str | bytes):  # one of numpy's numbers
        value = cell.item()
        cell = float(str(cell)) if isinstance(value, float) else value
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, bytes):
        cell = cell.decode(errors="replace")
    if isinstance(cell, dict):
        return json.dumps(cell, sort_keys=True, ensure_ascii=False, default=str)
    return one_form(str(cell).strip())


def _members(cell: Any) -> tuple[str, ...]:
    """Return the texts in a cell: one, or those of its list, also of a list that a table holds as text."""
    if getattr(cell, "ndim", 0):  # an array, recognised without the import of numpy, which takes long
        cell = list(cell)
    if isinstance(cell, str) and cell[:1] == "[" and cell[-1:] == "]":
        for text in (cell, cell.replace("'", '"')):  # as JSON writes it, and as Python does
            try:
                listed = json.loads(text)
            except (ValueError, RecursionError):
                continue
            if not any(isinstance(member, list | dict) for member in listed):
                cell = listed
            break
    if isinstance(cell, list | tuple | set | frozenset):
        return tuple(as_text(member) for member in cell)
    return (as_text(cell),)


def _spelled(cells: Iterable[Any], missing: Sequence[str], minus_one: bool = False) -> list[tuple[str, ...]]:
    """Return the labels of each cell under the rule of this module."""
    members = [_members(cell) for cell in cells]
    spelling = _spelling({text for found in members for text in found}, missing, minus_one)
    known = {found: _joined(found, spelling) for found in set(members)}
    return [known[found] for found in members]


def _joined(texts: tuple[str, ...], spelling: Mapping[str, str]) -> tuple[str, ...]:
    """Return the labels in a cell, sorted and each once."""
    return tuple(sorted({spelling[text] for text in texts} - {""}))


def _exact(text: str) -> str:
    """Return the spelling of a number; whole numbers keep all their digits."""
    integer = whole(text)
    return as_text(float(text)) if integer is None else str(integer)


def _spelling(texts: set[str], missing: Sequence[str], minus_one: bool) -> dict[str, str]:
    """Return the spelling of each text of a column; "" where it means no value."""
    absent = {as_text(text) for text in missing}
    numbers = {whole(text) for text in absent} - {None}
    spelling = {
        text: "" for text in texts if not text or text in absent or (numbers and whole(text) in numbers)
    }
    present = texts - spelling.keys()
    if all(_WHOLE.fullmatch(text) for text in present):
        spelling |= {text: str(whole(text)) for text in present}
        if minus_one and all(int(name) >= -1 for name in spelling.values() if name):
            spelling |= {text: "" for text, name in spelling.items() if name == "-1"}
    elif all(_NUMBER.fullmatch(text) and number(text) is not None for text in present):
        spelling |= {text: _exact(text) for text in present}
    elif all(text.lower() in ("true", "false") for text in present):
        spelling |= {text: text.capitalize() for text in present}
    else:
        spelling |= {text: text for text in present}
    return spelling
