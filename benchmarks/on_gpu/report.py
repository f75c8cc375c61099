"""What a case reports while it runs: a JSON line for each result, which stays if the case is killed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """Where and how large the cases run."""

    device: str
    """cuda or cpu."""
    tiny: bool
    """Use sizes that take seconds on a CPU; figures then mean nothing, but the code has run."""

    def size(self, tiny: Any, whole: Any) -> Any:
        """Return the first for `--tiny`, else the second."""
        return tiny if self.tiny else whole


class Report:
    """Writes what a case finds to a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def note(self, **figures: Any) -> None:
        """Add figures by name: numbers, texts, lists or dicts of them."""
        self._write("figures", figures)

    def check(self, holds: bool, otherwise: str) -> None:
        """Count the case as failed if `holds` is false, for the reason `otherwise`, and go on."""
        if not holds:
            self._write("failures", otherwise)

    def skip(self, reason: str) -> None:
        """Say why what matters in this case could not be done here."""
        self._write("skipped", reason)

    def _write(self, kind: str, value: Any) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps([kind, value], default=float) + "\n")


def read(file: Path) -> dict[str, Any]:
    """Return what a case has reported: "figures", "failures" and "skipped", each if there is any."""
    found: dict[str, Any] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            kind, value = json.loads(line)
        except json.JSONDecodeError:  # the case was killed while it wrote this line
            continue
        if kind == "figures":
            found.setdefault(kind, {}).update(value)
        elif kind == "failures":
            found.setdefault(kind, []).append(value)
        else:
            found[kind] = value
    return found


Case = Callable[[Setting, Report], None]
