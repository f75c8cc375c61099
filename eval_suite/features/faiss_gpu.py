"""FAISS on the GPU of this process, where it has one and FAISS was built for it."""

from functools import cache
from typing import Any

import faiss

MOST_NEIGHBOURS = 2048
"""Largest number of neighbours that FAISS can search for on a GPU."""


def available() -> bool:
    """Return whether FAISS can search on a GPU."""
    return faiss.get_num_gpus() > 0


def make_room() -> None:
    """Free the GPU memory that torch keeps for later, before a search: FAISS has an allocator of its own."""
    if available():
        import torch  # not at the head, because much of the evaluation does without it

        torch.cuda.empty_cache()


def device() -> int:
    """Return the index of this process's own GPU."""
    import torch

    return torch.cuda.current_device() if torch.cuda.is_available() else 0


@cache
def resources() -> Any:
    """Return FAISS's scratch space on the GPU; there is only one, since it takes more than a GiB."""
    return faiss.StandardGpuResources()
