"""Which checkpoints are kept, and how one is removed."""

import contextlib
import shutil
from collections.abc import Collection
from pathlib import Path

from isotorus.files import sync
from pretrain.checkpoint import damage, folders
from pretrain.checkpoint.config import CheckpointConfig


def superfluous(
    checkpoints: Path, kept: Collection[int], keep_last: int | None, keep_every: int | None
) -> list[int]:
    """Return which of the checkpoints after the steps `kept` are to be removed, here or in a mirror.

    The newest checkpoint of the folder says which is best on val; that one is not removed.
    """
    if keep_last is None or not kept:
        return []
    newest = folders.latest(checkpoints)
    best = (damage.describe(newest).get("validation") or {}).get("best_step") if newest else None
    olds = sorted(kept)[:-keep_last]
    return [step for step in olds if step != best and (keep_every is None or step % keep_every)]


def thin_out(checkpoints: Path, config: CheckpointConfig, in_use: Collection[int]) -> None:
    """Remove the superfluous checkpoints of a folder, except those whose steps are `in_use`."""
    for step in superfluous(checkpoints, folders.steps(checkpoints), config.keep_last, config.keep_every):
        if step not in in_use:
            remove(folders.folder(checkpoints, step))


def tidy(checkpoints: Path) -> None:
    """Remove what a killed save left behind, and point `latest` to the newest checkpoint.

    One rank calls it, before any save.
    """
    for leftover in (*checkpoints.glob(".partial_*"), *checkpoints.glob(".removed_*")):
        shutil.rmtree(leftover, ignore_errors=True)
    if newest := folders.latest(checkpoints):
        point_latest_to(newest)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that a kill leaves no half of it that looks complete."""
    hidden = checkpoint.with_name(f".removed_{checkpoint.name}")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def point_latest_to(checkpoint: Path) -> None:
    """Point the link `latest` to a checkpoint; it is for people, and nothing here needs it.

    Where links cannot be made (exFAT, many network shares) it is left out. A folder of that name, as a copy
    of the run makes it, is left alone.
    """
    link = checkpoint.parent / ".latest"
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
        link.symlink_to(checkpoint.name)
        link.rename(checkpoint.parent / "latest")
    with contextlib.suppress(OSError):
        link.unlink(missing_ok=True)
    sync(checkpoint.parent)
