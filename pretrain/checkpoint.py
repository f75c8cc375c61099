"""Checkpoints: one DCP format for any engine and world size, published whole or not at all.

A checkpoint is written to a hidden folder, synced to disk, renamed to `step_XXXXXXXX`, and only then
does `latest` move. Beside the DCP files lie `encoder.safetensors` and `encoder.json`, all that
`timm.create_model(...).load_state_dict(strict=True)` and the evaluation need.
"""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import BaseModel, ConfigDict, PositiveInt
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from data_pipeline.atomic import sync
from data_pipeline.errors import UserError, from_os_error
from pretrain.distributed import rank
from pretrain.engines import Engine
from pretrain.online_probe import OnlineProbe

_FULL = 2**20  # bytes: a disk with less is full


class CheckpointConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    every: PositiveInt = 1000
    """Steps between checkpoints; the last step always has one."""


def latest(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint of a folder of checkpoints."""
    return max((path.parent for path in checkpoints.glob("step_*/COMPLETE")), default=None)


def describe(checkpoint: Path) -> dict[str, Any]:
    """encoder.json of a checkpoint."""
    try:
        return json.loads((checkpoint / "encoder.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"checkpoint {checkpoint} cannot be read ({_first_line(error)}); remove that folder to continue "
            "from the one before it"
        ) from None


def save(
    checkpoints: Path,
    step: int,
    engine: Engine,
    probe: OnlineProbe | None,
    description: dict[str, Any],
) -> None:
    """Publish the state after `step` steps; called on all ranks, which all raise UserError if one fails."""
    partial, final = checkpoints / f".partial_{step:08d}", checkpoints / f"step_{step:08d}"
    encoder = engine.encoder_state()
    failure: list[BaseException | None] = [None]
    try:
        dcp.save(_state(engine, probe, step), checkpoint_id=partial)
        if rank() == 0:
            _publish(partial, final, encoder, description | {"step": step})
    except CheckpointException as failures:  # on all ranks alike
        failure = [next(iter(failures.failures.values()))[0]]
    except (OSError, SafetensorError) as error:  # on rank 0, the others wait to hear of it
        failure = [error]
    if failure[0] is not None and shutil.disk_usage(checkpoints).free < _FULL:
        # Writers in C++ tell of a full disk in many words.
        failure = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
    dist.broadcast_object_list(failure)
    if failure[0] is not None:
        shutil.rmtree(partial, ignore_errors=True)
        raise _save_error(step, failure[0])


def restore(checkpoint: Path, engine: Engine, probe: OnlineProbe | None) -> int:
    """Load a checkpoint into engine and probe, whatever engine and world size wrote it; returns its step."""
    state = _state(engine, probe, 0)
    try:
        dcp.load(state, checkpoint_id=checkpoint)
    except (CheckpointException, OSError, ValueError) as error:
        first = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise UserError(
            f"checkpoint {checkpoint} cannot be read ({_first_line(first)}); remove that folder to continue "
            "from the one before it"
        ) from None
    engine.load(state)
    return int(state["step"])


def _state(engine: Engine, probe: OnlineProbe | None, step: int) -> dict[str, Any]:
    # Tensors are loaded in place; `engine.load` sees to what the engine keeps elsewhere.
    return {**engine.state(), **({"probe": probe.state()} if probe else {}), "step": step}


def remove_partial(checkpoints: Path) -> None:
    """Clear what a killed save left behind; on one rank, before any save."""
    for leftover in checkpoints.glob(".partial_*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _publish(partial: Path, final: Path, encoder: dict[str, Tensor], description: dict[str, Any]) -> None:
    save_file({name: x.contiguous() for name, x in encoder.items()}, partial / "encoder.safetensors")
    (partial / "encoder.json").write_text(json.dumps(description, indent=2) + "\n")
    (partial / "COMPLETE").touch()
    for path in (*partial.iterdir(), partial):
        sync(path)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    link = final.parent / ".latest"
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    link.rename(final.parent / "latest")
    sync(final.parent)


def _save_error(step: int, error: BaseException) -> UserError:
    if isinstance(error, OSError):
        return from_os_error(error, f"saving the checkpoint of step {step} failed, the one before is whole")
    return UserError(
        f"saving the checkpoint of step {step} failed, the one before is whole: {_first_line(error)}; "
        "check the disk and run the same command again"
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
