"""The history of a run's configuration: a dated file for each start that changed something.

<run>/config_history/<time>.yaml is the configuration of that start and can be given as `--config`. The
comments at its head say from which step on it holds, and what it changed. The first configuration needs no
file: the changes name every earlier value.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from isotorus import foreign_files
from isotorus.errors import UserError
from isotorus.files import atomic
from isotorus.recipe import read_yaml
from pretrain.config import Config, flatten

FOLDER = "config_history"
_STEP = re.compile(r"# From step (\d+) on")
_CHANGE = re.compile(r"#   (\S+): (.*)")
_ABSENT = "not set"


class Change(NamedTuple):
    """One value that a start changed."""

    step: int
    """Number of steps that were done before."""
    name: str
    """Dotted name of the value."""
    values: str
    """The value before and after, such as "0.001 → 0.0001"."""


def record(folder: Path, config: dict[str, Any], step: int, remarks: list[str]) -> None:
    """Write config.yaml; if its values differ from the present file's, add a dated file to the history.

    `remarks` are comments at the head of config.yaml.
    """
    before = present(folder)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    changes = _differences(before, flatten(config)) if before else []
    if changes:
        head = [f"# From step {step} on, with these changes:", *(f"#   {name}: {x}" for name, x in changes)]
        (folder / FOLDER).mkdir(exist_ok=True)
        with atomic(_new_path(folder / FOLDER)) as file:
            file.write(("\n".join(head) + "\n" + text).encode())
    with atomic(folder / "config.yaml") as file:
        file.write(("".join(f"# {remark}\n" for remark in remarks) + text).encode())


def changes(folder: Path) -> list[Change]:
    """Return all changes of a run, in the order in which they were made."""
    found = []
    for path in sorted((folder / FOLDER).glob("*.yaml")):
        lines = foreign_files.read_text(path).splitlines()
        if lines and (step := _STEP.match(lines[0])):
            matches = (_CHANGE.fullmatch(line) for line in lines[1:] if line.startswith("#"))
            found += [Change(int(step[1]), match[1], match[2]) for match in matches if match]
    return found


def present(folder: Path) -> dict[str, Any]:
    """Return the values in a run's config.yaml by their dotted names; {} if it cannot be read."""
    try:
        # As `record` wrote it, with the texts that YAML 1.1 leaves unquoted.
        values = read_yaml(foreign_files.read_text(folder / "config.yaml"), yaml.SafeLoader)
    except (OSError, UserError, yaml.YAMLError):
        return {}
    if not isinstance(values, dict):
        return {}
    try:  # fields that are newer than the file get their defaults
        return flatten(Config.model_validate(values).model_dump(mode="json"))
    except ValidationError:
        return flatten(values)


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the name of each differing value, and the value before and after as text."""

    def shown(values: dict[str, Any], name: str) -> str:
        return json.dumps(values[name], ensure_ascii=False) if name in values else _ABSENT

    names = [*before, *(name for name in after if name not in before)]
    pairs = [(name, shown(before, name), shown(after, name)) for name in names]
    return [(name, f"{old} → {new}") for name, old, new in pairs if old != new]


def _new_path(folder: Path) -> Path:
    """Return the path of a file that is named after the present time and sorts after all others."""
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S")
    last = max((path.stem for path in folder.glob("*.yaml")), default="")
    if name <= last:  # two starts in one second, or a clock that was set back
        base, _, number = last.partition("_")
        name = f"{base}_{int(number or 1) + 1:03d}"
    return folder / f"{name}.yaml"
