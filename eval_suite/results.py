"""Reading and writing the files of an evaluation; results.json is reused if its inputs are unchanged."""

import contextlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from eval_suite.attempts import reason
from eval_suite.inputs import seals
from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error
from isotorus.files import atomic, remove_leftovers
from pretrain.checkpoint.mirror.address import is_copy

log = logging.getLogger(__name__)

SEAL, FILES = ".seal", ("results.json", "report.html")
"""What marks an evaluation as this user's, and the files that it covers."""
_LARGEST = 2**30  # bytes of results.json
_WRITTEN = ("*.json", "*.html", "*.csv", "*.parquet", "*.txt", SEAL)
ELSEWHERE = "features from elsewhere"
"""What results.json calls the encoder of a file of features."""
FORMAT = 3
"""Version of results.json; it increases when the meaning of a key changes."""


def finished(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results in a folder, if they were made from `inputs` and the report is there; else None.

    They must have been made by an evaluation of this user, because the folder may be somebody else's.
    """
    if not seals.holds(folder / SEAL, [folder / name for name in FILES]):
        return None
    results = read(folder)
    return results if results.get("inputs") == inputs else None


def read(folder: Path) -> dict[str, Any]:
    """Return the results that an evaluation of this command has just written to a folder."""
    results: dict[str, Any] = foreign_files.read_json(folder / "results.json", most=_LARGEST)
    return results


def seal(folder: Path) -> None:
    """Mark results.json and report.html in a folder as made by this user."""
    seals.write(folder / SEAL, [folder / name for name in FILES])


def make_folder(out: Path, home: Path | None = None) -> None:
    """Create the folder for results; raises UserError if nothing can be written there.

    `home` is the evaluated folder: if `out` lies in it by its name, no link may lead out of it.
    """
    refuse_copy(out)
    if home and out.absolute().is_relative_to(home.absolute()):
        foreign_files.inside(out, home)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise from_os_error(error, f"writing results to {out}") from error
    remove_leftovers(out, _WRITTEN)


def refuse_copy(out: Path) -> None:
    """Raise UserError if results would lie beside a copy from a store, in the cache folder."""
    if is_copy(out):
        raise UserError("the checkpoint is in a store, where no results are written; give --out FOLDER")


@contextmanager
def folder(out: Path, home: Path | None = None) -> Iterator[None]:
    """Create the folder for results as `make_folder` does; an error in the block leaves no empty folder."""
    made = [each for each in (out, *out.parents) if not each.exists()]
    make_folder(out, home)
    try:
        yield
    except BaseException:
        for each in made:
            with contextlib.suppress(OSError):  # one that is not empty
                each.rmdir()
        raise


def write(file: Path, text: str) -> None:
    """Write a file completely or not at all; raises UserError where the disk refuses."""
    try:
        with atomic(file) as stream:
            # Names of files and of classes may hold bytes that are no UTF-8; Python keeps them as surrogates.
            stream.write(text.encode(errors="backslashreplace"))
    except OSError as error:
        raise from_os_error(error, f"writing {file.name}") from error


def write_page(file: Path, draw: Callable[[], str]) -> None:
    """Write the page that `draw` returns; if it cannot be drawn, warn, because the numbers are there."""
    try:
        page = draw()
    except Exception as error:  # whatever it is, what was measured is worth more than the page
        log.warning("warning: no %s (%s); %s has the results", file.name, reason(error), file.parent)
        log.debug("%s", file.name, exc_info=True)
        return
    write(file, page)


def as_json(results: dict[str, Any]) -> str:
    """Return JSON text; raises ValueError for NaN, which `json_safe` removes."""
    return json.dumps(results, indent=1, allow_nan=False) + "\n"


def dig(values: Any, path: str) -> Any:
    """Return the entry at a path such as "probe/auroc"; None if there is no such entry."""
    for key in path.split("/"):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values


def json_safe(value: Any) -> Any:
    """Convert numpy numbers to Python numbers, keys to text, and NaN and infinity to None."""
    if isinstance(value, dict):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
