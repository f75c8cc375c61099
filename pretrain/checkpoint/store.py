"""A run's checkpoints on disk: one DCP format for any engine and world size, published whole or not at all.

A checkpoint is written to a hidden folder, synced to disk, renamed to `step_XXXXXXXX`, and only then does
`latest` point to it, where links can be made. Beside the DCP files lie `encoder.safetensors` and
`encoder.json`, which are all that `timm.create_model(...).load_state_dict(strict=True)` needs (or, with
winding attention, `pretrain.models.encoder.create`), and `projector.safetensors` for the evaluation, with
`content_projector.safetensors` where a torus head has content beside its angles. Where a run averages its
weights, `encoder_average.safetensors` and `projector_average.safetensors` do too. COMPLETE lists the size and
checksum of each file, so that damage is found before a checkpoint is loaded.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from isotorus.errors import UserError, from_os_error
from isotorus.files import as_new, sync
from pretrain.checkpoint import damage, dcp_reading, folders, retention
from pretrain.checkpoint.config import CheckpointConfig
from pretrain.distributed import on_all_ranks, rank, world_size
from pretrain.models.lora import merge

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # where one rank reads by itself

_PARTS = {
    "encoder.safetensors": "encoder.encoder.",
    "projector.safetensors": "head.projector.",
    "content_projector.safetensors": "head.content.projector.",
    "encoder_average.safetensors": "average.encoder.encoder.",
    "projector_average.safetensors": "average.projector.",
}
"""Files that are read without DCP, and the prefix that their tensors' names have in a state's "model".

Those of which a state has nothing are left out.
"""

_TRIAL = 2**20  # bytes: a disk that does not accept them is full


def write(
    checkpoints: Path,
    step: int,
    state: dict[str, Any],
    description: dict[str, Any],
    config: CheckpointConfig,
    group: dist.ProcessGroup | None,
    in_use: Collection[int] = (),
) -> None:
    """Publish `state` as the checkpoint after `step` steps, and remove old ones, except those `in_use`.

    All ranks of `group` call it, each with the whole tensors that it has to write and with its shards of
    DTensors. If one rank fails, all raise UserError.
    """
    partial = checkpoints / f".partial_{step:08d}"

    def publish() -> None:
        if rank() == 0:
            files = {name: sizes for share in measured for name, sizes in share.items()}
            _publish(partial, folders.folder(checkpoints, step), description | {"step": step}, files)
            retention.thin_out(checkpoints, config, in_use)

    try:
        # The state is on the CPU already; copying ahead would wait for the training on the device.
        writer = dcp.FileSystemWriter(partial, per_thread_copy_ahead=0)
        dcp.save(state, storage_writer=writer, process_group=group)
        own = partial.glob(f"__{rank()}_*")
        measured = on_all_ranks(lambda: {path.name: damage.measure(path) for path in own}, group)
        on_all_ranks(publish, group)
    except (CheckpointException, OSError, SafetensorError) as error:
        # Writers in C++ report a full disk in many ways, so ask the disk itself before the files are removed.
        number = max(on_all_ranks(lambda: _refusal(checkpoints), group))
        cause = OSError(number, os.strerror(number)) if number else _cause(error)
        shutil.rmtree(partial, ignore_errors=True)
        raise _save_error(step, cause) from None


def _refusal(folder: Path) -> int:
    """Return the error number with which the file system refuses a small file now; 0 if it accepts it."""
    trial = folder / f".trial_{rank()}"
    try:
        with trial.open("wb") as file:
            file.write(bytes(_TRIAL))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or 0
    finally:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
    return 0


def _publish(partial: Path, final: Path, description: dict[str, Any], measured: dict[str, list[int]]) -> None:
    written = [".metadata", "encoder.json"]
    for name, prefix in _PARTS.items():
        if whole := _whole(partial, prefix):
            save_file(merge(whole), partial / name)
            as_new(partial / name)
            written.append(name)
    (partial / "encoder.json").write_text(json.dumps(description, indent=2) + "\n")
    for name in written:
        measured[name] = damage.measure(partial / name)
    (partial / "COMPLETE").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    for path in (*partial.iterdir(), partial):
        sync(path)
    if final.exists():
        retention.remove(final)
    partial.rename(final)
    retention.point_latest_to(final)


def _whole(partial: Path, prefix: str) -> dict[str, Tensor]:
    """Put a part's whole tensors together from all ranks' files; names come without the prefix."""
    stored = dcp_reading.Reader(partial).read_metadata().state_dict_metadata
    whole = {
        name.removeprefix("model."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if name.startswith(f"model.{prefix}") and isinstance(entry, dcp.TensorStorageMetadata)
    }
    dcp_reading.load({"model": whole}, partial, no_dist=True)
    return {name.removeprefix(prefix): value for name, value in whole.items()}


def restore(checkpoint: Path, state: dict[str, Any], optional: str = "") -> None:
    """Fill `state` from a checkpoint, tensors in place, whatever engine and world size wrote it.

    All ranks call it, and all raise UserError if the checkpoint is damaged or has other tensors. If only the
    part of `state` named `optional` does not fit, that part is removed from `state` instead.
    """
    damages = on_all_ranks(lambda: damage.in_part(checkpoint, rank(), world_size()))
    if reasons := [reason for share in damages for reason in share]:
        raise damage.Damaged(checkpoint, reasons[0])
    try:
        stored = dcp_reading.Reader(checkpoint).read_metadata().state_dict_metadata
    except (dcp_reading.Foreign, OSError) as error:
        raise damage.Damaged(checkpoint, str(error)) from None
    if optional in state and _misfit({optional: state[optional]}, stored):
        del state[optional]
    if misfit := _misfit(state, stored):
        raise UserError(
            f"{checkpoint} is of another model: {misfit}; choose another name for the run, or the encoder "
            "and the objective it was trained with"
        )
    try:
        dcp_reading.load(state, checkpoint)
    except (CheckpointException, OSError, ValueError, dcp_reading.Foreign) as error:
        raise damage.Damaged(checkpoint, damage.first_line(_cause(error))) from None


def _misfit(state: dict[str, Any], stored: dict[str, Any], prefix: str = "") -> str:
    """Describe the first value of a nested state that does not fit what is stored; "" if all fit."""
    for key, value in state.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            if misfit := _misfit(value, stored, f"{name}."):
                return misfit
        elif name not in stored:
            return f"it has no {name}"
        elif isinstance(value, Tensor) and (size := getattr(stored[name], "size", None)) != value.shape:
            return f"{name} is {tuple(size or ())} there and {tuple(value.shape)} here"
    return ""


def _cause(error: BaseException) -> BaseException:
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _save_error(step: int, error: BaseException) -> UserError:
    if isinstance(error, OSError):
        return from_os_error(error, f"saving the checkpoint of step {step} failed, the one before is whole")
    return UserError(
        f"saving the checkpoint of step {step} failed, the one before is whole: {damage.first_line(error)}; "
        "check the disk and run the same command again"
    )
