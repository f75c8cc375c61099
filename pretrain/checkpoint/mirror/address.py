"""Addresses of stores, and the folder of copies from them; without torch, for the arguments of commands."""

from pathlib import Path

from data_pipeline.storage.cache import default_folder


def is_address(name: str) -> bool:
    """Return whether a name is the address of a store and no path."""
    return "://" in name


def copies() -> Path:
    """Return the folder of the copies of checkpoints, in the user's cache folder."""
    return default_folder() / "mirrors"


def is_copy(path: Path) -> bool:
    """Return whether a path lies in the folder of copies, where nothing else should be kept."""
    return path.resolve().is_relative_to(copies().resolve())


def without_cache(weights: str | None) -> str | None:
    """Return the path of weights, and of a copy only what follows the folder of copies.

    The same copy has the same text then on another node or in another job, whose cache may lie elsewhere.
    """
    return weights and weights.rpartition(f"/{copies().parent.name}/{copies().name}/")[2]
