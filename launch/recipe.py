"""What follows -- on a launcher's command line, read before anything is started."""

from typing import TYPE_CHECKING, NamedTuple

from isotorus.errors import ArgumentParser

if TYPE_CHECKING:
    from pretrain.config import Config


class Recipe(NamedTuple):
    path: str
    """As given: a YAML file, or the name of a packaged recipe."""
    overrides: list[str]
    config: "Config"


def read_recipe(pretrain: list[str]) -> Recipe:
    """Raises UserError for what `python -m pretrain` would refuse to read."""
    # Imported here: torch comes with it, which takes seconds.
    from pretrain.config import load_config

    path, overrides = named(pretrain)
    return Recipe(path, overrides, load_config(path, overrides))


def named(pretrain: list[str]) -> tuple[str, list[str]]:
    """The recipe and the overrides that are named, unread."""
    parser = ArgumentParser(prog="python -m pretrain")
    parser.add_argument("--config", required=True)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args(pretrain)
    return given.config, given.overrides
