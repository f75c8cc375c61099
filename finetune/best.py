"""Put the best checkpoint of a run into the run's own folder, where all commands look first."""

import shutil
from pathlib import Path
from typing import Any

from isotorus.errors import from_os_error
from isotorus.files import atomic
from pretrain.checkpoint import damage, folders

_FILES = ("encoder.safetensors", "projector.safetensors", "encoder.json")
"""Files to copy. encoder.json is the last one, because commands take a folder that has it for a
checkpoint."""


def of_run(run: Path) -> Path:
    """Return the checkpoint of a finished run that is best on val."""
    newest = folders.latest(run / "checkpoints")
    assert newest is not None, run
    described: dict[str, Any] = damage.describe(newest)
    return folders.folder(run / "checkpoints", described["validation"]["best_step"])


def publish(run: Path) -> None:
    """Copy the files of the best checkpoint that are read without the run; raises UserError."""
    best = of_run(run)
    try:
        for name in _FILES:
            with (best / name).open("rb") as source, atomic(run / name) as copy:
                shutil.copyfileobj(source, copy)
    except OSError as error:
        raise from_os_error(error, f"copying the best checkpoint to {run}") from error
