"""Paths in a recipe: ~ and $VAR mean the same in every field."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from isotorus.secrets import may_be_secret

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
_SQLITE = "sqlite:///"
_LONGEST_PATH, _LONGEST_NAME = 4000, 255  # bytes; a run's own files come below its folder


def expanded(path: str) -> str:
    """Return a path with the home folder for ~ and with the values of variables for $VAR and ${VAR}.

    The path in sqlite:///path counts, but no other URL: a recipe that others wrote could send a variable to
    any server. Raises ValueError for a variable that is not set or may be a secret, and for characters and
    lengths that no path can have.
    """
    if path.startswith(_SQLITE):
        return _SQLITE + expanded(path.removeprefix(_SQLITE))
    if "://" in path:
        return path
    if "\0" in path:
        raise ValueError("a path cannot hold a NUL; take it out")
    made = os.path.expanduser(_VARIABLE.sub(_value, path))  # noqa: PTH111  keeps a final slash
    if len(os.fsencode(made)) > _LONGEST_PATH or any(
        len(os.fsencode(x)) > _LONGEST_NAME for x in made.split("/")
    ):
        raise ValueError(
            f"a path has at most {_LONGEST_PATH} bytes and a name in it {_LONGEST_NAME}; shorten it"
        )
    return made


def _value(found: re.Match[str]) -> str:
    name = found[1] or found[2]
    if may_be_secret(name):
        raise ValueError(f"{found[0]} may be a secret, which the run would write; give the path itself")
    if name not in os.environ:
        raise ValueError(f"{found[0]} is not set here; export {name}, or give the path itself")
    return os.environ[name]


PathText = Annotated[str, AfterValidator(expanded)]
"""A path or URL as text."""
LocalPath = Annotated[Path, AfterValidator(lambda path: Path(expanded(str(path))))]
"""A path on this machine."""
