"""The folders of a run's checkpoints: their names, and which of them are complete."""

from pathlib import Path

import torch.distributed as dist

from pretrain.distributed import rank


def latest(checkpoints: Path) -> Path | None:
    """Return the newest complete checkpoint of a folder of checkpoints, or None."""
    return max(complete(checkpoints), default=None)


def agreed_latest(checkpoints: Path) -> Path | None:
    """Return on all ranks what rank 0 sees as `latest`; a file server may show another state to each rank."""
    newest = [latest(checkpoints) if rank() == 0 else None]
    dist.broadcast_object_list(newest)
    return newest[0]


def folder(checkpoints: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return checkpoints / f"step_{step:08d}"


def steps(checkpoints: Path) -> set[int]:
    """Return the steps of all complete checkpoints of a folder of checkpoints."""
    return {int(path.name.removeprefix("step_")) for path in complete(checkpoints)}


def complete(checkpoints: Path) -> list[Path]:
    """Return the complete checkpoints of a folder of checkpoints, in no order."""
    return [path.parent for path in checkpoints.glob("step_*/COMPLETE")]
