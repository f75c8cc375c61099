"""Find the samples that a list of keys and groups means, in all sets of a split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import files, withdrawn
from data_pipeline.dataset.index import Dataset, key_hash
from data_pipeline.tables.cells import one_form
from isotorus.errors import UserError, from_os_error
from isotorus.foreign_files import open_regular

_NAMED = 3
"""Largest number of keys that a message names."""
_BLANKS = " \t\r\ufeff"
"""Characters that are cut off around a key. The last one is the byte order mark, with which editors on
Windows begin a file."""


class Names(NamedTuple):
    """What a list of keys and groups means."""

    keys: NDArray[np.uint64]
    """Hashes of keys of samples or of files."""
    groups: NDArray[np.uint64]
    """Hashes of groups."""
    before: int
    """How many of the keys and groups have no sample, because all were removed earlier."""


def read_keys(file: Path) -> list[str]:
    """Return the keys in a text file with one on each line; raise `UserError` if it names none."""
    try:
        with open_regular(file) as stream:
            text = stream.read()
    except FileNotFoundError:
        raise UserError(f"there is no file {file}; give a text file with one key on each line") from None
    except OSError as error:
        raise from_os_error(error, f"reading {file}") from error
    if b"\0" in text:  # UTF-16, as some programs of Windows write it, or no text at all
        raise UserError(f"{file} is no text in UTF-8; give a text file with one key on each line")
    lines = text.decode(errors="surrogateescape").split("\n")
    keys = [stripped for line in lines if (stripped := line.strip(_BLANKS))]
    if not keys:
        raise UserError(f"{file} names no image; write one key on each line, as embed and search show them")
    return keys


def find(sets: Mapping[str, Dataset], keys: Sequence[str], groups: Sequence[str]) -> Names:
    """Return what the keys of samples or files and the groups mean in the sets.

    The path of an image, with its ending, is taken where it is no key. Raises `UserError` for keys and groups
    that are in no set and were removed from none.
    """
    known, of_groups = _known(sets), _known_groups(sets)
    was = np.concatenate([withdrawn.of(dataset) for dataset in sets.values()])
    was_keys = set(withdrawn.hashes(was, "key", "file").tolist())
    was_groups = set(withdrawn.hashes(was, "group").tolist())
    hashes, before, unknown = [], 0, []
    for key in keys:
        spellings = [key_hash(spelling) for spelling in _spellings(key)]
        found = next((value for value in spellings if value in known), None)
        if found is not None:
            hashes.append(found)
        elif removed := [value for value in spellings if value in was_keys]:
            hashes.append(removed[0])
            before += 1
        else:
            unknown.append(key)
    group_hashes = []
    for group in groups:
        value = key_hash(one_form(group))
        group_hashes.append(value)
        if value in of_groups:
            continue
        if value in was_groups:
            before += 1
        else:
            unknown.append(f"group {group}")
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise UserError(
            f"{len(unknown)} of {len(keys) + len(groups)} names are in no set of "
            f"{', '.join(dataset.path for dataset in sets.values())}: {', '.join(unknown[:_NAMED])}{more}; "
            "a key is the path of an image without its ending, and . in it is _"
        )
    return Names(np.array(hashes, np.uint64), np.array(group_hashes, np.uint64), before)


def mask(dataset: Dataset, names: Names) -> NDArray[np.bool_]:
    """Return which samples of a set (n,) have one of the keys or groups; a key is that of a sample or of its
    file.
    """
    chosen: NDArray[np.bool_] = np.isin(dataset.rows["key"], names.keys)
    if dataset.description.reading is not None:
        chosen |= np.isin(files.read(dataset)["key"], names.keys)
    if dataset.groups is not None:
        chosen |= np.isin(dataset.groups, names.groups)
    return chosen


def _known(sets: Mapping[str, Dataset]) -> set[int]:
    """Return the hashes of the keys of all samples and of all files."""
    columns: list[NDArray[Any]] = [dataset.rows["key"] for dataset in sets.values()]
    columns += [files.read(s)["key"] for s in sets.values() if s.description.reading is not None]
    return set(np.unique(np.concatenate(columns)).tolist())


def _known_groups(sets: Mapping[str, Dataset]) -> set[int]:
    """Return the hashes of all groups."""
    known = [np.unique(dataset.groups) for dataset in sets.values() if dataset.groups is not None]
    return {value for groups in known for value in groups.tolist()} - {0}


def _spellings(name: str) -> list[str]:
    """Return the keys that a name may mean: itself, and the key of an image with this path."""
    # Imported here: it needs the image decoders.
    from data_pipeline.packing.listing import Item
    from data_pipeline.scientific_formats import formats

    return [name, one_form(name), Item(name, 0, format=formats.by_name(name)).key]
