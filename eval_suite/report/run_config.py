"""What two runs have in common, read from the config.yaml of each."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from isotorus import foreign_files
from isotorus.errors import UserError
from isotorus.recipe import read_yaml

Config = Mapping[str, Any]

NO_MATTER = {
    *("name", "runs", "seed", "resume", "accept", "log_every", "online_probe"),
    *("checkpoint", "stopping", "tracking", "profile"),
    *("data.workers", "data.cache", "data.max_corrupt"),
}
"""Fields that do not tell runs apart: they leave the encoder as it is, or are the seed, which is averaged."""
ENGINE_MATTERS = {"precision"}
"""Fields of `engine` that change the numbers; all other engines give the same loss and gradient."""


def read(run: Path) -> Config | str:
    """Return the configuration of a run, or the reason why it cannot be read, in words."""
    file = run / "config.yaml"
    try:
        values = read_yaml(foreign_files.read_bytes(file).decode())
    except FileNotFoundError:
        return "its config.yaml is missing"
    except OSError as error:
        return f"its config.yaml cannot be read ({error.strerror})"
    except foreign_files.Refused:
        return "its config.yaml is no regular file in its folder"
    except (yaml.YAMLError, UserError, ValueError, RecursionError):
        return "its config.yaml is not YAML"
    if not isinstance(values, dict):
        return "its config.yaml holds no keys and values"
    return values


def settings(config: Config, *, steps: bool = True) -> str:
    """Return everything that shapes the encoder except the seed, as text; equal for runs that may be pooled.

    Without `steps`, runs of another length count as equal too.
    """
    kept = {key: value for key, value in config.items() if key not in NO_MATTER}
    if not steps:
        kept.pop("steps", None)
    if isinstance(engine := kept.pop("engine", None), Mapping):
        kept["engine"] = {key: value for key, value in engine.items() if key in ENGINE_MATTERS}
    if isinstance(data := kept.get("data"), Mapping):
        kept["data"] = {key: value for key, value in data.items() if f"data.{key}" not in NO_MATTER}
    return json.dumps(kept, sort_keys=True, default=str)


def objective(config: Config) -> dict[str, Any]:
    """Return the section `objective` by dotted names; {} if there is none."""
    section = config.get("objective")
    return dict(_flat(section, "")) if isinstance(section, Mapping) else {}


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
