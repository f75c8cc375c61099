"""Which images there are, what they are called and how they are labelled; nothing is decoded here."""

import csv
import difflib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_pipeline.errors import UserError, from_os_error

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be packed."""

    path: str
    """Relative to the source folder, with forward slashes."""
    key: str
    size: int
    """Bytes of the file."""
    label: int = -1
    extra: str = ""
    """The other columns of its CSV row as JSON; empty if there are none."""
    group: str = ""
    """Images of one group stay on one side of a split."""


@dataclass(frozen=True)
class Columns:
    """Names of the CSV's columns that mean something."""

    image: str = "image"
    label: str = "label"
    group: str | None = None


def from_folder(source: Path, labelled: bool) -> tuple[list[Item], list[str]]:
    """All images below `source` in the order of their paths, and the class names.

    Labelled, an image's class is the first-level folder that it lies in. Raises `UserError` if there
    is no image, an image has no class, or two images have one key.
    """
    paths = sorted(_walk(source))
    if not paths:
        raise UserError(f"{source} holds no images; expected files ending in {', '.join(sorted(EXTENSIONS))}")
    folders = [PurePosixPath(path).parts[0] if "/" in path else None for path in paths]
    if labelled and None in folders:
        raise UserError(
            f"{folders.count(None)} images lie in {source} itself (first: {paths[folders.index(None)]}); "
            "with --labels folder each must be in the folder of its class"
        )
    classes = sorted({folder for folder in folders if folder}) if labelled else []
    number = {name: i for i, name in enumerate(classes)}
    items = [
        Item(path, key_of(path), _size(source, path), number.get(folder or "", -1))
        for path, folder in zip(paths, folders, strict=True)
    ]
    _refuse_equal_keys(items)
    return items, classes


def from_csv(source: Path, file: Path, columns: Columns) -> tuple[list[Item], list[str]]:
    """The images that a CSV lists, in its order, and the class names.

    An empty label leaves an image unlabelled. Raises `UserError` if a column or a file is missing, a
    path leads out of `source`, or two rows have one key.
    """
    rows = _read(file, columns)
    outside = [row for row in rows if _leads_out(row[columns.image])]
    if outside:
        raise UserError(
            f"{file} names {outside[0][columns.image]!r} in column {columns.image!r}; "
            f"expected a path relative to {source} and inside it"
        )
    absent = [row[columns.image] for row in rows if not (source / row[columns.image]).is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} of the {len(rows)} files named by {file} are not in {source} "
            f"(first: {absent[0]}); correct the paths or the source folder"
        )
    classes = sorted({row[columns.label] for row in rows} - {""})
    number = {name: i for i, name in enumerate(classes)}
    items = []
    for row in rows:
        path = str(PurePosixPath(row[columns.image]))
        extra = {name: value for name, value in row.items() if name not in (columns.image, columns.label)}
        items.append(
            Item(
                path,
                key_of(path),
                _size(source, path),
                label=number.get(row[columns.label], -1),
                extra=json.dumps(extra, sort_keys=True, ensure_ascii=False) if extra else "",
                group=row[columns.group] if columns.group else "",
            )
        )
    _refuse_equal_keys(items)
    return items, classes


def key_of(path: str) -> str:
    """WebDataset key: the path without extension; dots, where WebDataset would cut, become underscores."""
    return str(PurePosixPath(path).with_suffix("")).replace(".", "_")


def _walk(source: Path) -> Iterator[str]:
    """Image files below `source`, relative to it; symbolic links are followed but not in circles."""

    def refuse(error: OSError) -> None:
        raise from_os_error(error, f"reading the images in {source}") from error

    for folder, subfolders, names in os.walk(source, onerror=refuse, followlinks=True):
        here = Path(folder).resolve()
        subfolders[:] = [name for name in subfolders if not here.is_relative_to(Path(folder, name).resolve())]
        for name in names:
            if Path(name).suffix.lower() in EXTENSIONS:
                yield Path(folder, name).relative_to(source).as_posix()


def _size(source: Path, path: str) -> int:
    try:
        return (source / path).stat().st_size
    except OSError as error:
        raise from_os_error(error, "reading the images") from error


def _leads_out(path: str) -> bool:
    parts = PurePosixPath(path)
    return not parts.parts or parts.is_absolute() or ".." in parts.parts


def _read(file: Path, columns: Columns) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            _refuse_missing_columns(file, reader.fieldnames or [], columns)
            rows = list(reader)
    except OSError as error:
        raise from_os_error(error, f"reading the labels {file}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a CSV in UTF-8 ({error}); save it as one") from None
    if not rows:
        raise UserError(f"{file} lists no images; expected a row for each below the column names")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise UserError(f"{file}, row {number}, has another number of cells than the first row; mend it")
    return rows


def _refuse_missing_columns(file: Path, present: Iterable[str], columns: Columns) -> None:
    options = {"--image-column": columns.image, "--label-column": columns.label}
    if columns.group is not None:
        options["--group-column"] = columns.group
    for option, name in options.items():
        if name not in present:
            nearest = difflib.get_close_matches(name, present, n=1, cutoff=0.4)
            guess = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise UserError(
                f"{file} has no column {name!r}, its columns are {', '.join(present)}{guess} "
                f"Choose with {option}"
            )


def _refuse_equal_keys(items: list[Item]) -> None:
    first: dict[str, str] = {}
    for item in items:
        if item.key in first:
            raise UserError(
                f"{first[item.key]} and {item.path} would have the same key {item.key!r}; "
                "a key is the path without extension, so rename or leave out one of them"
            )
        first[item.key] = item.path
