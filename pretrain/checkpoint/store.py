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
import zlib
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

from isotorus import foreign_files
from isotorus.errors import UserError, from_os_error
from isotorus.files import as_new, sync
from pretrain.checkpoint import dcp_reading
from pretrain.checkpoint.config import CheckpointConfig, OnDamage
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
_CHUNK = 16 * 2**20  # bytes read at a time for a checksum


class Damaged(UserError):
    """A checkpoint whose files are not as they were written."""

    def __init__(self, checkpoint: Path, reason: str) -> None:
        self.earlier = max((path for path in _complete(checkpoint.parent) if path < checkpoint), default=None)
        self.found = f"checkpoint {checkpoint} is damaged: {reason}"
        before = self.earlier
        then = f"continue from {before.name}" if before else "begin again, as there is no earlier one"
        super().__init__(f"{self.found}; remove that folder to {then}")


def latest(checkpoints: Path) -> Path | None:
    """Return the newest complete checkpoint of a folder of checkpoints, or None."""
    return max(_complete(checkpoints), default=None)


def latest_described(checkpoints: Path, on_damage: OnDamage) -> Path | None:
    """Return the newest complete checkpoint whose encoder.json can be read, or None.

    Raises Damaged where `RunState.resume` would.
    """
    for checkpoint in sorted(_complete(checkpoints), reverse=True):
        try:
            describe(checkpoint)
            return checkpoint
        except Damaged as error:
            if on_damage == "refuse" or error.earlier is None:
                raise
    return None


def agreed_latest(checkpoints: Path) -> Path | None:
    """Return on all ranks what rank 0 sees as `latest`; a file server may show another state to each rank."""
    newest = [latest(checkpoints) if rank() == 0 else None]
    dist.broadcast_object_list(newest)
    return newest[0]


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint so that it no longer counts as one; all ranks call it and wait for it."""

    def rename() -> None:
        if rank() == 0:
            aside, number = checkpoint.with_name(f"damaged_{checkpoint.name}"), 2
            while aside.exists():
                aside, number = checkpoint.with_name(f"damaged_{checkpoint.name}.{number}"), number + 1
            checkpoint.rename(aside)

    on_all_ranks(rename)


def folder(checkpoints: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return checkpoints / f"step_{step:08d}"


def describe(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's encoder.json; raises Damaged.

    Its checksum is compared first: with a flipped bit it may still be JSON, with another value.
    """
    name = "encoder.json"
    if found := damage(checkpoint, name):
        raise Damaged(checkpoint, found)
    try:
        values = foreign_files.read_json(checkpoint / name)
    except (OSError, UserError) as error:
        raise Damaged(checkpoint, _first_line(error)) from None
    if not isinstance(values, dict):
        raise Damaged(checkpoint, f"{name} describes nothing")
    return values


def damage(checkpoint: Path, name: str) -> str:
    """Say how a file differs from its checksum in COMPLETE; "" if it does not, or none is listed."""
    try:
        listed = foreign_files.read_json(checkpoint / "COMPLETE")
    except (OSError, UserError):  # `restore` reports it
        return ""
    return _difference(checkpoint, name, listed[name]) if isinstance(listed, dict) and name in listed else ""


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
            _publish(partial, folder(checkpoints, step), description | {"step": step}, files)
            _thin_out(checkpoints, config, in_use)

    try:
        # The state is on the CPU already; copying ahead would wait for the training on the device.
        writer = dcp.FileSystemWriter(partial, per_thread_copy_ahead=0)
        dcp.save(state, storage_writer=writer, process_group=group)
        own = partial.glob(f"__{rank()}_*")
        measured = on_all_ranks(lambda: {path.name: measure(path) for path in own}, group)
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
        measured[name] = measure(partial / name)
    (partial / "COMPLETE").write_text(json.dumps(measured, indent=1, sort_keys=True) + "\n")
    for path in (*partial.iterdir(), partial):
        sync(path)
    if final.exists():
        _remove(final)
    partial.rename(final)
    _point_latest_to(final)


def measure(path: Path) -> list[int]:
    """Return a file's size in bytes and its CRC-32."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
        return [file.tell(), checksum]


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
    damages = on_all_ranks(lambda: _damages(checkpoint, rank(), world_size()))
    if reasons := [reason for share in damages for reason in share]:
        raise Damaged(checkpoint, reasons[0])
    try:
        stored = dcp_reading.Reader(checkpoint).read_metadata().state_dict_metadata
    except (dcp_reading.Foreign, OSError) as error:
        raise Damaged(checkpoint, str(error)) from None
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
        raise Damaged(checkpoint, _first_line(_cause(error))) from None


def _damages(folder: Path, part: int, parts: int) -> list[str]:
    """Check one of `parts` parts of the files that COMPLETE lists; return what is wrong with them."""
    try:
        listed = foreign_files.read_json(folder / "COMPLETE")
    except (OSError, UserError) as error:
        return [f"COMPLETE cannot be read ({error})"]
    if not isinstance(listed, dict) or any("/" in name for name in listed):
        return ["COMPLETE is no list of files"]
    found = (_difference(folder, name, listed[name]) for name in sorted(listed)[part::parts])
    return [damage for damage in found if damage]


def _difference(folder: Path, name: str, written: Any) -> str:
    """Say how a file differs from its size and checksum when it was written; "" if it does not."""
    file = folder / name
    try:
        size = file.stat().st_size
        if not file.is_file():
            return f"{name} is no regular file"
        if not isinstance(written, list) or len(written) != 2:
            return f"{name} has no checksum in COMPLETE"
        if size != written[0]:
            return f"{name} has {size} bytes of {written[0]}"
        return "" if measure(file) == written else f"{name} has another checksum than when it was written"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


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


def tidy(checkpoints: Path) -> None:
    """Remove what a killed save left behind, and point `latest` to the newest checkpoint.

    One rank calls it, before any save.
    """
    for leftover in (*checkpoints.glob(".partial_*"), *checkpoints.glob(".removed_*")):
        shutil.rmtree(leftover, ignore_errors=True)
    if newest := latest(checkpoints):
        _point_latest_to(newest)


def _thin_out(checkpoints: Path, config: CheckpointConfig, in_use: Collection[int]) -> None:
    for step in superfluous(checkpoints, steps(checkpoints), config.keep_last, config.keep_every):
        if step not in in_use:
            _remove(folder(checkpoints, step))


def superfluous(
    checkpoints: Path, kept: Collection[int], keep_last: int | None, keep_every: int | None
) -> list[int]:
    """Return which of the checkpoints after the steps `kept` are to be removed, here or in a mirror.

    The newest checkpoint of the folder says which is best on val; that one is not removed.
    """
    if keep_last is None or not kept:
        return []
    newest = latest(checkpoints)
    best = (describe(newest).get("validation") or {}).get("best_step") if newest else None
    olds = sorted(kept)[:-keep_last]
    return [step for step in olds if step != best and (keep_every is None or step % keep_every)]


def steps(checkpoints: Path) -> set[int]:
    """Return the steps of all complete checkpoints of a folder of checkpoints."""
    return {int(path.name.removeprefix("step_")) for path in _complete(checkpoints)}


def _complete(checkpoints: Path) -> list[Path]:
    return [path.parent for path in checkpoints.glob("step_*/COMPLETE")]


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that a kill leaves no half of it that looks complete."""
    hidden = checkpoint.with_name(f".removed_{checkpoint.name}")
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _point_latest_to(checkpoint: Path) -> None:
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


def _cause(error: BaseException) -> BaseException:
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _save_error(step: int, error: BaseException) -> UserError:
    if isinstance(error, OSError):
        return from_os_error(error, f"saving the checkpoint of step {step} failed, the one before is whole")
    return UserError(
        f"saving the checkpoint of step {step} failed, the one before is whole: {_first_line(error)}; "
        "check the disk and run the same command again"
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
