"""results.json: written whole or not at all, and found again when nothing it depends on has changed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from isotorus.errors import from_os_error
from isotorus.files import atomic

FORMAT = 2


def finished(folder: Path, inputs: dict[str, Any]) -> dict[str, Any] | None:
    """The results in a folder, if they are those of `inputs` and the report is beside them."""
    if not (folder / "report.html").exists():
        return None
    try:
        results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    except (OSError, ValueError):
        return None
    return results if results.get("inputs") == inputs else None


def make_folder(out: Path) -> None:
    """Find out before the work whether its results can be kept; raises UserError if not."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        trial = out / ".writable"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise from_os_error(error, f"writing results to {out}") from error


def write(file: Path, text: str) -> None:
    """Publish a file; raises UserError where the disk refuses."""
    try:
        with atomic(file) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise from_os_error(error, f"writing {file.name}") from error


def as_json(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=1, allow_nan=False) + "\n"


def json_safe(value: Any) -> Any:
    """Plain numbers and text keys; JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
