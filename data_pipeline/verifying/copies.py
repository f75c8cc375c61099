"""`verify --duplicates`: list the near copies in data sets, above all those of one set in another."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.dataset.index import Dataset
from data_pipeline.dataset.near_copies import thumbnails
from data_pipeline.dataset.near_copies.pairs import NearCopies
from data_pipeline.preview.sets import Sets
from isotorus import jsonl
from isotorus.errors import UserError, from_os_error, one_line

_LISTED = 20  # near copies that are printed


def check(paths: Sequence[str], workers: int, out: Path | None, *, allow_across: bool) -> int:
    """Print the near copies in all data sets in `paths`, and write them to the file `out`.

    Returns the exit code: 1 if there are near copies across sets, unless these are allowed. Raises
    `UserError` as `Dataset` does, and if the file cannot be written.
    """
    if out is not None and (not out.parent.is_dir() or out.is_dir()):
        raise UserError(f"--out {out}: expected a file in a folder that exists, e.g. copies.jsonl")
    sets = list(dict.fromkeys(dataset.path for path in paths for dataset in Sets(path).datasets))
    found = near_copies(sets, workers)
    if out is not None:
        try:
            jsonl.replace(out, found.rows)
        except OSError as error:
            raise from_os_error(error, f"writing {out}") from error
    for row in found.rows[:_LISTED]:
        print(f"{'across sets' if row['set'] != row['of_set'] else 'within a set'}: {_line(row)}")
    if len(found.rows) > _LISTED:
        more = f"all are in {out}" if out else "--out FILE.jsonl lists all"
        print(f"and {len(found.rows) - _LISTED} more; {more}")
    for note in found.notes:
        print(f"note: {note}")
    advice = (
        "pack again with --group-duplicates, which keeps them on one side, or with --drop-duplicates"
        if found.across
        else f"next: isotorus init {sets[0]} > recipe.yaml"
    )
    print(
        f"{', '.join(paths)}: {found.across} near copies across sets and {len(found.rows) - found.across} "
        f"within a set, among {found.images} images; {advice}"
    )
    return int(found.across > 0 and not allow_across)


@dataclass(frozen=True)
class Found:
    """The near copies in several data sets."""

    rows: list[dict[str, Any]]
    """A row for each image that is a near copy of one before it: set, sample and key of both, bits and
    correlation; those across sets come first."""
    across: int
    """How many of them have their copy in another set."""
    images: int
    """Number of images."""
    notes: list[str]
    """What was not compared, a line each."""


def near_copies(paths: Sequence[str], workers: int) -> Found:
    """Return the near copies within and across the data sets in `paths`, the first of which counts as the
    original.

    Images of one group, such as the slices of a volume, are no copies of each other. Raises `UserError` as
    `Dataset` does.
    """
    sets = [Dataset(path) for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "thumbnails.npy"
        unreadable = thumbnails.of_sets(sets, file, workers)
        found = NearCopies(file, np.concatenate([thumbnails.groups_of(each) for each in sets]))
        copies = found.copies(of_kept=False)
    ends = np.cumsum([len(each) for each in sets])
    rows = []
    for copy in copies:
        numbers = np.searchsorted(ends, [copy.row, copy.of], side="right").tolist()
        row: dict[str, Any] = {}
        for name, number, place in zip(("", "of_"), numbers, (copy.row, copy.of), strict=True):
            sample = int(place - ends[number] + len(sets[number]))
            row |= {f"{name}set": paths[number], f"{name}sample": sample}
            row[f"{name}key"] = sets[number].key(sample)
        rows.append(row | {"bits": copy.bits, "correlation": copy.correlation})
    rows.sort(key=lambda row: row["set"] == row["of_set"])
    across = sum(row["set"] != row["of_set"] for row in rows)
    return Found(rows, across, int(ends[-1]), list(_notes(unreadable, found)))


def _line(row: dict[str, Any]) -> str:
    """Return a line about one near copy."""
    one, other = (f"{row[f'{p}set']} {row[f'{p}sample']} ({row[f'{p}key']})" for p in ("", "of_"))
    said = f"{one} is like {other}: {row['bits']} of 64 bits differ, correlation {row['correlation']:.3f}"
    return one_line(said)


def _notes(unreadable: int, found: NearCopies) -> Iterator[str]:
    """Yield a line for each kind of image that was not compared, or not with all others."""
    if unreadable:
        yield f"{unreadable} images cannot be read and were not compared; isotorus verify names them"
    if flat := found.flat - unreadable:
        yield f"{flat} images of a single grey value were not compared"
    if found.cut:
        yield f"{found.cut} images have so many similar hashes that not all of their pairs were compared"
