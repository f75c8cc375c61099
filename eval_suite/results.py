"""Reading and writing the files of an evaluation; results.json is reused if its inputs are unchanged."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isotorus.errors import from_os_error
from isotorus.files import atomic

FORMAT = 3
"""Version of results.json; it increases when the meaning of a key changes."""


def finished(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results in a folder, if they were made from `inputs` and the report is there; else None."""
    if not (folder / "report.html").exists():
        return None
    try:
        results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    except (OSError, ValueError):
        return None
    return results if results.get("inputs") == inputs else None


def make_folder(out: Path) -> None:
    """Create the folder for results; raises UserError if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial = out / ".writable"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise from_os_error(error, f"writing results to {out}") from error


def write(file: Path, text: str) -> None:
    """Write a file completely or not at all; raises UserError where the disk refuses."""
    try:
        with atomic(file) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise from_os_error(error, f"writing {file.name}") from error


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
