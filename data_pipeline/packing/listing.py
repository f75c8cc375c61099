"""List the images to pack, with their keys and labels; no image is decoded here."""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from data_pipeline.dataset.description import DESCRIPTION
from data_pipeline.dataset.table_files import INDEX
from data_pipeline.dataset_writer.staging import STAGING
from data_pipeline.decoders.decode import EXTENSIONS
from data_pipeline.packing import item_bytes, manifest, other_pictures
from data_pipeline.packing.manifest import Columns
from data_pipeline.scientific_formats import formats
from data_pipeline.storage.disk_list import DiskList
from data_pipeline.storage.folders import (
    AROUND,
    COMPANION,
    COMPANIONS,
    ELSEWHERE,
    HIDDEN,
    NOWHERE,
    leads_nowhere,
    walk,
)
from data_pipeline.tables.cells import one_form, one_path, plain_path
from isotorus.errors import UserError, from_os_error
from isotorus.foreign_files import kind_of

_SHOWN = 200
"""Characters of a cell that an error shows."""
MOST_NAMED = 3
"""Files that a message names."""


class MaskFile(NamedTuple):
    """The file with the mask of an image."""

    path: str
    """Path that opens it."""
    name: str
    """Path relative to the folder of masks."""
    size: int
    modified: int


class Item(NamedTuple):
    """One image to be packed."""

    path: str
    """Path relative to the source folder, with forward slashes."""
    size: int
    """Size of the file in bytes."""
    modified: int = 0
    """Time of the last modification, in nanoseconds since the epoch."""
    label: str = ""
    """Class name; "" if the image has no label."""
    extra: str = ""
    """The other columns of the image's row in the table, as JSON; "" if there are none."""
    group: str = ""
    """Name of the image's group; images of one group go to the same side of a split."""
    split: str = ""
    """Name of the image's set, where the table says it."""
    unread: str = ""
    """The kind of what is there, such as a named pipe, if it is not a regular file; otherwise empty."""
    format: str = ""
    """Scientific format of the file, such as "DICOM" (see `scientific_formats.formats`); "" for others."""
    mask: MaskFile | None = None

    @property
    def key(self) -> str:
        """The WebDataset key: the path without its extension, and with "_" in place of each remaining dot.

        Dots are replaced because WebDataset ends a key at the first dot of the file name.
        """
        if self.format:
            return formats.stem(self.path, self.format).replace(".", "_")
        folder, slash, name = self.path.rpartition("/")
        return f"{folder}{slash}{name.rpartition('.')[0] or name}".replace(".", "_")


class Named:
    """Counts files that a message is about, and keeps the names of the first of them."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self.count = 0
        self.first: list[str] = []
        for path in paths:
            self.add(path)

    def add(self, path: str) -> None:
        """Count a file."""
        self.count += 1
        if len(self.first) < MOST_NAMED:
            self.first.append(path)


def from_folder(
    source: Path, labelled: bool, passed: Counter[str] | None = None
) -> tuple[DiskList[Item], Counter[str]]:
    """Return all images in `source` and its subfolders, sorted by path, and the number of other pictures
    there by the ending of their names. Counts in `passed` what else is left out, by its kind.

    With `labelled`, the class of an image is the first folder in its path. Raises `UserError` if there are no
    images, or if an image is in no class folder.
    """
    others: Counter[str] = Counter()
    paths = _image_files(source, others, Counter() if passed is None else passed)
    found = DiskList(_item(source, path, labelled) for path in paths)
    if not found:
        but = f" but {other_pictures.summary(others)}" if others else ""
        expected = ", ".join(sorted({*EXTENSIONS, *formats.endings()}))
        raise UserError(f"{source} holds no images{but}; expected files ending in {expected}")
    items = DiskList(found.ordered(lambda item: item.path))
    loose = Named(item.path for item in items if not item.label) if labelled else Named()
    if loose.count:
        raise UserError(
            f"{loose.count} images lie in {source} itself (first: {loose.first[0]}); "
            "with --labels folder each must be in the folder of its class"
        )
    return items, others


def _item(source: Path, path: str, labelled: bool) -> Item:
    """Return the image at a path, with its class if the images are `labelled` by folder."""
    size, modified, unread = _stat(source, path)
    label = one_form(path.partition("/")[0]) if labelled and "/" in path else ""
    return Item(path, size, modified, label, unread=unread, format=_format(source, path, unread))


def from_manifest(
    source: Path, file: Path, columns: Columns, missing: Sequence[str] | None = None
) -> DiskList[Item]:
    """Return the images that the rows of a CSV or Parquet file list, in their order.

    A path may be spelled as another system writes it: with backslashes, blanks at its ends, or accents
    composed otherwise. `missing` are the cells that mean "no label".

    Raises `UserError` if a column or a file is missing, or if a path leads out of `source`.
    """
    items, absent = DiskList[Item](), Named()
    others = _OtherSpellings(source)
    for row in manifest.read(file, columns, missing):
        if _leads_out(row.image) or "\0" in row.image:
            raise UserError(
                f"{file} names {row.image[:_SHOWN]!r} in column {columns.image!r}; "
                f"expected a path relative to {source} and inside it"
            )
        path = plain_path(row.image)
        try:
            size, modified, unread = _stat(source, path)
        except (FileNotFoundError, NotADirectoryError):
            other = others.find(row.image)
            if other is None:
                absent.add(row.image)
                continue
            path = other
            size, modified, unread = _stat(source, path)
        kind = _format(source, path, unread)
        items.append(Item(path, size, modified, row.label, row.extra, row.group, row.split, unread, kind))
    if absent.count:
        raise UserError(
            f"{absent.count} of the {len(items) + absent.count} files named by {file} are not in {source} "
            f"(first: {absent.first[0][:_SHOWN]}); correct the paths or the source folder"
        )
    return items


class _OtherSpellings:
    """Finds images in a folder by paths that are spelled otherwise; the folder is listed at first use."""

    def __init__(self, source: Path) -> None:
        self._source = source

    @cached_property
    def _paths(self) -> dict[str, list[str]]:
        """The paths in the folder by their common spelling."""
        paths: dict[str, list[str]] = {}
        for path in _image_files(self._source, Counter(), Counter()):
            paths.setdefault(one_path(path), []).append(path)
        return paths

    def find(self, path: str) -> str | None:
        """Return the path that is spelled like this one; None unless exactly one is."""
        found = self._paths.get(one_path(path), [])
        return found[0] if len(found) == 1 else None


def grouped(items: DiskList[Item], pattern: str) -> DiskList[Item]:
    """Return the images with their groups set from their paths.

    `pattern` is a regular expression; what its first group matches in a path is the name of the image's
    group. Raises `UserError` if the pattern is invalid, has no group, or does not match some path.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--group-pattern {pattern!r} is no regular expression ({error}); correct it"
        ) from None
    if not expression.groups:
        raise UserError(
            f"--group-pattern {pattern!r} has no group; put what names an image's group in parentheses, "
            "e.g. 'patient([0-9]+)'"
        )
    found, without = DiskList[Item](), Named()
    for item in items:
        match = expression.search(item.path)
        if match and match[1]:
            found.append(item._replace(group=one_form(match[1])))
        else:
            without.add(item.path)
    if without.count:
        raise UserError(
            f"--group-pattern {pattern!r} finds no group in {without.count} of {len(items)} paths "
            f"(first: {without.first[0]}); change the expression, or take those images away"
        )
    return found


def class_names(items: Iterable[Item]) -> list[str]:
    """Return the class names in the order of their indices: by value if all are whole numbers, else by name.

    Raises `UserError` if a name contains characters that cannot be printed.
    """
    names = {item.label for item in items} - {""}
    for name in names:
        if not name.isprintable():
            raise UserError(f"the class name {name!r} is not text that can be printed; rename that class")
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if numbers else None)


def _image_files(source: Path, others: Counter[str], passed: Counter[str]) -> Iterator[str]:
    """Yield the image files in `source` and its subfolders, as paths relative to `source`.

    What has the ending of an image and is no regular file is yielded too. Counts `others`, and in `passed`
    the hidden folders and whatever else is no regular file. Folders that hold a packed data set are left out.
    """
    try:
        for folder, subfolders, names, special in walk(source):
            if STAGING in subfolders or all((folder / name).exists() for name in (DESCRIPTION, INDEX)):
                subfolders.clear()  # a data set: the tables beside its shards are no images
                continue
            passed[HIDDEN] += sum(name.startswith(".") for name in subfolders)
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            relative = "" if folder == source else f"{folder.relative_to(source).as_posix()}/"
            yield from (relative + name for name in filter(formats.is_folder, subfolders))
            subfolders[:] = [name for name in subfolders if not formats.is_folder(name)]
            for name in names:
                if name.startswith(COMPANION):
                    passed[COMPANIONS] += 1
                elif _is_image(folder, name):
                    yield relative + name
                elif ending := other_pictures.ending(folder / name):
                    others[ending] += 1
            for name, kind in special:
                is_image = _ending(name) in EXTENSIONS or formats.by_name(name)
                if is_image and kind not in (ELSEWHERE, AROUND):
                    yield relative + name
                else:
                    passed[kind] += 1
    except OSError as error:
        raise from_os_error(error, f"reading the images in {source}") from error


def _is_image(folder: Path, name: str) -> bool:
    """Return whether a file is an image by its ending, or by its first bytes if the ending says nothing."""
    ending = _ending(name)
    if ending in EXTENSIONS or formats.by_name(name):
        return True
    return ending not in other_pictures.NOT_LOOKED_INTO and bool(formats.of(folder / name))


def _ending(name: str) -> str:
    """Return the ending of a file's name with its dot, in lower case, as `Path.suffix` does but faster."""
    dot = name.rfind(".", name.rfind("/") + 2)
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def _stat(source: Path, path: str) -> tuple[int, int, str]:
    """Return the size in bytes and the time of the last modification of an image, and `Item.unread`."""
    try:
        status = os.stat(f"{source}/{path}")  # noqa: PTH116  a Path takes ten times as long
    except OSError as error:
        if leads_nowhere(error) and (source / path).is_symlink():
            return 0, 0, NOWHERE
        if error.errno == errno.ENAMETOOLONG:
            raise FileNotFoundError from None
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        raise from_os_error(error, "reading the images") from error
    kind = kind_of(status.st_mode)
    if kind == "folder" and formats.is_folder(path):
        return *item_bytes.size_and_time(source / path), ""
    return (0, 0, kind) if kind else (status.st_size, status.st_mtime_ns, "")


def _format(source: Path, path: str, unread: str) -> str:
    """Return `Item.format` of an image."""
    if unread or _ending(path) in EXTENSIONS:
        return formats.by_name(path)
    return formats.of(source / path)


def _leads_out(path: str) -> bool:
    """Return whether a path is empty, absolute, or contains ".."."""
    return plain_path(path) in (".", "") or path.startswith("/") or ".." in path.split("/")
