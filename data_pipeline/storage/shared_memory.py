"""Check that batches fit into the shared memory through which loading processes hand them over."""

import os
import shutil
from pathlib import Path

from isotorus.errors import UserError

_FOLDER = Path("/dev/shm")


def require_room(workers: int, batches: int, bytes_: int) -> None:
    """Raise `UserError` if /dev/shm has no room for this number of batches of each rank on this machine.

    A batch takes `bytes_` bytes. `workers` is the number of loading processes of a rank; with 0, nothing is
    written to /dev/shm. A worker that writes to a full /dev/shm dies of a bus error, or the training waits
    for it forever.
    """
    if not workers or not _FOLDER.is_dir():
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    need, free = ranks * batches * bytes_, shutil.disk_usage(_FOLDER).free
    if need > free:
        raise UserError(
            f"{_FOLDER} has {free / 2**20:.0f} MiB free, but the batches of {ranks} x {workers} workers need "
            f"up to {need / 2**20:.0f} MiB there; enlarge it (docker run --shm-size=8g, in Kubernetes an "
            "emptyDir with medium: Memory), or set data.workers lower (0 needs none)"
        )
