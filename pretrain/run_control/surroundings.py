"""Environment variables that make torch faster, where the user has set none.

They have to be set before torch is imported.
"""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

ALLOCATOR = "PYTORCH_ALLOC_CONF"
_ALLOCATORS = (ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
WAITING = "OMP_WAIT_POLICY"
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}


def set_surroundings() -> None:
    """Let GPU memory grow in place, keep compiled code on this node, and do what `set_for_cpus` does.

    Views of two sizes take turns, and without expandable segments the memory that one size has freed may not
    fit the other. Triton's own cache is in the home folder, which the nodes of a cluster often share.
    """
    set_for_cpus()
    if not any(name in os.environ for name in _ALLOCATORS):
        os.environ[ALLOCATOR] = "expandable_segments:True"
    folder = own_folder(Path(tempfile.gettempdir()))
    if folder is not None:
        for name, part in CACHES.items():
            os.environ.setdefault(name, str(folder / part))


def set_for_cpus() -> None:
    """Make steps on CPUs faster.

    Each step allocates its large tensors anew, and the kernel maps them page by page, which takes less time
    with pages of 2 MiB. A thread that spins while it waits for others takes the core that they or the loader
    need ("Steps on CPUs" in benchmarks/RESULTS.md).
    """
    os.environ.setdefault(LARGE_PAGES, "1")
    os.environ.setdefault(WAITING, "passive")


def own_folder(parent: Path) -> Path | None:
    """Return this user's folder in `parent`, which all may write to; None if others can write to it.

    Compiled code is loaded from it, so nobody else may have made it or write to it.
    """
    folder = parent / f"isotorus-{os.getuid()}"
    with contextlib.suppress(OSError):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        mine = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        if stat.S_ISDIR(found.st_mode) and mine:
            return folder
    return None
