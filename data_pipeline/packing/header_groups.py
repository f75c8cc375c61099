"""Name the group of each file by a field of its header, such as the patient of a DICOM file."""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from sys import intern

from data_pipeline import pool
from data_pipeline.field_formats import formats
from data_pipeline.packing.listing import Item
from data_pipeline.tables.cells import one_form
from isotorus.errors import UserError, from_os_error

_AT_ONCE = 256  # files that a worker reads in one task


@dataclass(frozen=True)
class _Task:
    """Files whose headers are read."""

    source: Path
    items: list[Item]
    field: str


def grouped(source: Path, items: list[Item], field: str, workers: int) -> list[Item]:
    """Return the images with the groups that a field of their headers names.

    Files without such a header, or whose header cannot be read or lacks the field, have no group.
    Raises `UserError` if no header has the field, or if a file cannot be read.
    """
    headed = [item for item in items if item.format]
    if not headed:
        raise UserError(
            f"--group-field {field}: {source} holds no files of a field with a header, such as DICOM; "
            "name groups with --group-pattern or --group-column"
        )
    tasks = [_Task(source, headed[i : i + _AT_ONCE], field) for i in range(0, len(headed), _AT_ONCE)]
    named = pool.run(_names, tasks, workers, "reading headers", len(headed))
    names = {item.path: intern(one_form(name)) for item, name in zip(headed, chain(*named), strict=True)}
    if not any(names.values()):
        raise UserError(
            f"--group-field {field}: none of the {len(headed)} files in {source} with a header has this "
            "field; spell it as the format does (DICOM: PatientID), or name groups with --group-pattern or "
            "--group-column"
        )
    return [replace(item, group=names.get(item.path, "")) for item in items]


def _names(task: _Task) -> list[str]:
    """Return the value of the field for each file, "" if it has none; runs in a worker of `pool.run`."""
    names = []
    for item in task.items:
        pool.count()
        try:
            with formats.opened(task.source / item.path) as file:
                names.append(formats.field_of(item.format, file, task.field))
        except OSError as error:
            raise from_os_error(error, "reading the headers") from error
    return names
