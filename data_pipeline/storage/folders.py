"""Walk through a folder and its subfolders."""

import os
from collections.abc import Iterator
from pathlib import Path


def walk(top: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield (folder, subfolders, file names) as `os.walk` does, and follow symbolic links.

    Links to a folder that contains the link are not followed, so the walk ends. The caller may remove names
    from `subfolders` to skip them. Raises OSError if a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(top, onerror=refuse, followlinks=True):
        here = Path(folder).resolve()
        subfolders[:] = [name for name in subfolders if not here.is_relative_to(Path(folder, name).resolve())]
        yield Path(folder), subfolders, names
