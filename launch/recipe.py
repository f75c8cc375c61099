"""Read the pretrain arguments after `--` and the recipe that they name, before anything is started."""

from typing import TYPE_CHECKING, NamedTuple

from isotorus.errors import ArgumentParser

if TYPE_CHECKING:
    from pretrain.config import Config


class Recipe(NamedTuple):
    path: str
    """The value of --config: a YAML file, or the name of a packaged recipe."""
    overrides: list[str]
    config: "Config"


def read_recipe(pretrain: list[str]) -> Recipe:
    """Read the recipe. Raise UserError for arguments or a recipe that `isotorus train` would refuse."""
    # Imported here because it takes half a second, which --help need not wait for.
    from pretrain.config import load_config

    path, overrides = split_arguments(pretrain)
    return Recipe(path, overrides, load_config(path, overrides))


def split_arguments(pretrain: list[str]) -> tuple[str, list[str]]:
    """Return the value of --config and the overrides, without reading the recipe."""
    parser = ArgumentParser(prog="isotorus train")
    parser.add_argument("--config", required=True)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_intermixed_args(pretrain)
    return args.config, args.overrides
