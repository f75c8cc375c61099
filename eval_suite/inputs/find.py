"""Finding checkpoints: from a run, a folder of runs, a pattern, a checkpoint folder, a weights file, or the
address of a run's mirror.
"""

import contextlib
import glob
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipeline.storage.remote import shown
from eval_suite.inputs.checkpoints import (
    AVERAGE,
    COMPLETE,
    TIMM_WEIGHTS,
    WEIGHTS,
    Checkpoint,
    refuse_pickle,
)
from isotorus import foreign_files
from isotorus.errors import UserError
from pretrain.checkpoint.mirror.address import is_address
from pretrain.models.description import DESCRIPTION, TIMM_DESCRIPTION

log = logging.getLogger(__name__)

PICKLE_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"}
PAIRS = {WEIGHTS: DESCRIPTION, TIMM_WEIGHTS: TIMM_DESCRIPTION, AVERAGE: DESCRIPTION}
"""Weights files, each with the name of its description."""


def find(given: Sequence[str], every: int | None = None, *, waiting: bool = False) -> list[Checkpoint]:
    """Find the checkpoints that are named: each once, in the given order, and by step within a run.

    A run stands for its newest complete checkpoint and, with `every`, also for those whose step is a multiple
    of it; a folder of runs stands for all its runs that have one. Checkpoints of runs are not opened. Raises
    UserError for a name without a checkpoint; a run that has none yet is accepted if `waiting`. If there are
    several checkpoints, those with missing files are returned too, so that the others can be evaluated;
    `Checkpoint.require_whole` refuses them later.
    """
    checkpoints: dict[Path, Checkpoint] = {}
    named = [(path, name) for name in given for path in _paths(name, every)]
    for path, name in named:
        for checkpoint in _in(path, name, every, waiting):
            if len(named) == 1 and not _is_run(path):
                checkpoint.require_whole()
            checkpoints.setdefault(checkpoint.weights, checkpoint)
    return list(checkpoints.values())


def runs(given: Sequence[str]) -> list[Path]:
    """Return the run folders that are named, also those that have no checkpoint yet.

    Raises UserError for the address of a store, because the copy of a run there does not grow.
    """
    for name in filter(is_address, given):
        raise UserError(
            f"--watch follows runs on a disk, and {shown(name)} is in a store; name the run's folder"
        )
    named = [path for name in given for path in _paths(name)]
    return [run for path in named for run in ([path] if _is_run(path) else _runs_in(path))]


def finished(given: Sequence[str]) -> bool:
    """Say whether all named runs have the checkpoint of their last step."""
    return all(_has_ended(run) for run in runs(given))


def _has_ended(run: Path) -> bool:
    saved = _of_run(run, every=1, waiting=True)
    for checkpoint in reversed(saved):
        # A damaged description does not matter, because those of the other steps say the same.
        with contextlib.suppress(UserError, TypeError):
            return bool(saved[-1].step >= checkpoint.encoder.config.get("steps", 0))
    return False


def _paths(name: str, every: int | None = None) -> list[Path]:
    """Return the path, the paths that match the pattern, or the copies of the checkpoints at an address.

    Raises UserError if there are none.
    """
    if is_address(name):
        # Imported here because it takes time, and few checkpoints come from a store.
        from pretrain.checkpoint.mirror.fetch import fetch

        return fetch(name, every)
    if Path(name).exists():
        return [Path(name)]
    matching = sorted(glob.glob(name, recursive=True))  # noqa: PTH207, as pathlib takes no absolute pattern
    if not matching:
        raise UserError(f"{name}: no such run or checkpoint; name a folder under runs/, or {WEIGHTS}")
    return [Path(match) for match in matching]


def _in(path: Path, name: str, every: int | None, waiting: bool) -> Iterable[Checkpoint]:
    """Return the checkpoints at one path; `name` is what the user gave."""
    if path.is_file():
        refuse_pickle(path)
        if path.name not in PAIRS:
            raise UserError(f"{name} is not a checkpoint; name a run, a checkpoint folder or its {WEIGHTS}")
        return [_checkpoint(_home(path.parent) / path.name)]
    if not path.is_dir():
        raise UserError(f"{name} is neither a folder nor a regular file; name a run or a checkpoint")
    for weights, description in PAIRS.items():
        if (path / weights).exists() or (weights == WEIGHTS and (path / description).exists()):
            return [_checkpoint(_home(path) / weights)]
    if _is_run(path):
        return _of_run(path, every, waiting)
    if several := _runs_in(path):
        found = {run: _of_run(run, every, waiting=True) for run in several}
        if not waiting:
            for run in [run for run, saved in found.items() if not saved]:
                log.warning("note: %s has no complete checkpoint yet", run)
        if waiting or any(found.values()):
            return [checkpoint for saved in found.values() for checkpoint in saved]
        return _of_run(several[0], every, waiting)
    if pickles := sorted(file for file in path.iterdir() if file.suffix in PICKLE_SUFFIXES):
        refuse_pickle(pickles[0])
    if (path / TIMM_DESCRIPTION).exists():
        raise UserError(
            f"{path} has {TIMM_DESCRIPTION} but no {TIMM_WEIGHTS}; save the weights of a timm model there as "
            "safetensors"
        )
    raise UserError(
        f"{path} is neither a run nor a checkpoint (no checkpoints/, no {WEIGHTS}), nor a folder of runs"
    )


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def _runs_in(path: Path) -> list[Path]:
    """Return the runs in a folder, without links out of it, which somebody else may have put there."""
    runs = sorted(child for child in path.iterdir() if _is_run(child)) if path.is_dir() else []
    inside = []
    for run in runs:
        try:
            foreign_files.inside(run, path)
            inside.append(run)
        except foreign_files.Refused:
            log.warning("note: %s is a link that leads out of %s; name it itself to evaluate it", run, path)
    return inside


def _of_run(run: Path, every: int | None, waiting: bool) -> list[Checkpoint]:
    """Return the newest complete checkpoint, and with `every` those of its multiples, by step."""
    folder = run / "checkpoints"
    markers = sorted(folder.glob(f"step_*/{COMPLETE}"))
    home = run.resolve()
    complete = [_checkpoint(home / "checkpoints" / marker.parent.name / WEIGHTS) for marker in markers]
    if not complete and waiting:
        return []
    if not complete:
        raise UserError(f"{run} has no complete checkpoint yet; train it on to its first one")
    return [each for each in complete if each is complete[-1] or (every and each.step % every == 0)]


def _checkpoint(weights: Path) -> Checkpoint:
    folder = weights.parent
    run = folder.parent.parent if folder.parent.name == "checkpoints" else None
    return Checkpoint(weights, folder / PAIRS[weights.name], run)


def _home(folder: Path) -> Path:
    """Return the folder of a checkpoint; a link such as `latest` in a run may only lead to a sibling."""
    home = folder.resolve()
    if folder.is_symlink() and folder.parent.name == "checkpoints" and home.parent != folder.parent.resolve():
        raise UserError(f"{folder} is a link that leads out of {folder.parent}; name the checkpoint itself")
    return home
