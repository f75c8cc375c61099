"""Name the group of each file by a field of its header, such as the patient of a DICOM file."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from sys import intern

from data_pipeline import pool
from data_pipeline.packing.listing import Item
from data_pipeline.scientific_formats import formats
from data_pipeline.storage.disk_list import DiskList
from data_pipeline.tables.cells import one_form
from isotorus.errors import UserError, from_os_error

_AT_ONCE = 256  # files that a worker reads in one task


@dataclass(frozen=True)
class _Task:
    """Files whose headers are read."""

    source: Path
    items: DiskList[Item]
    field: str


def grouped(source: Path, items: DiskList[Item], field: str, workers: int) -> DiskList[Item]:
    """Return the images with the groups that a field of their headers names.

    Files without such a header, or whose header cannot be read or lacks the field, have no group.
    Raises `UserError` if no header has the field, or if a file cannot be read.
    """
    headed = DiskList(item for item in items if item.format)
    if not headed:
        raise UserError(
            f"--group-field {field}: {source} holds no files of a field with a header, such as DICOM; "
            "name groups with --group-pattern or --group-column"
        )
    starts = range(0, len(headed), _AT_ONCE)
    tasks = [_Task(source, headed.part(i, min(i + _AT_ONCE, len(headed))), field) for i in starts]
    names = pool.run(_names, tasks, workers, "reading headers", len(headed))
    if not any(map(any, names)):
        raise UserError(
            f"--group-field {field}: none of the {len(headed)} files in {source} with a header has this "
            "field; spell it as the format does (DICOM: PatientID), or name groups with --group-pattern or "
            "--group-column"
        )
    name = chain.from_iterable(names)
    return DiskList(item._replace(group=next(name) if item.format else "") for item in items)


def _names(task: _Task) -> list[str]:
    """Return the value of the field for each file, "" if it has none; runs in a worker of `pool.run`."""
    names = []
    for item in task.items:
        pool.count()
        try:
            with formats.opened(task.source / item.path) as file:
                # Interned, so that equal names of a task are one text also in the process that gets them.
                names.append(intern(one_form(formats.field_of(item.format, file, task.field))))
        except OSError as error:
            raise from_os_error(error, "reading the headers") from error
    return names
