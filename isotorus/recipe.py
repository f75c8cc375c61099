"""Recipes: YAML files of a run's configuration, the user's own or those packaged in `configs/`."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from isotorus.errors import UserError


def read_recipe_file(path: str) -> dict[str, Any]:
    """Return the keys and values of a YAML file, or of a packaged recipe by its name, not yet validated.

    A file at `path` comes before a packaged recipe of that name ("x", "x.yaml" or "configs/x.yaml").
    Raises `UserError` if there is neither, if the text is not YAML, or if it is not a mapping.
    """
    try:
        values = read_yaml(_text(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected keys and values, found {type(values).__name__}")
    return values


class _Loader(yaml.SafeLoader):
    """YAML without code, with the numbers of YAML 1.2: PyYAML follows 1.1, where 1e-5 is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_yaml(text: str) -> Any:
    """Return the value of a recipe or of an override in YAML; raises `yaml.YAMLError`."""
    return yaml.load(text, _Loader)


def _text(path: str) -> str:
    if Path(path).is_file():
        return Path(path).read_text()
    recipes = files("configs")
    packaged = recipes / f"{Path(path).name.removesuffix('.yaml')}.yaml"
    if packaged.is_file() and Path(path).parent in (Path(), Path("configs")):
        return packaged.read_text()
    known = sorted(entry.name for entry in recipes.iterdir() if entry.name.endswith(".yaml"))
    raise UserError(f"--config {path}: no such file; packaged recipes are {', '.join(known)}")
