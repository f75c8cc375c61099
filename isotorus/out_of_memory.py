"""Recognise that memory ran out: on the CPU, on a GPU, or in a process that reads data."""

import errno
import re

DEAD_READER = "DataLoader worker (pid"
"""Text of torch's error if a process that reads data was killed, which is mostly for want of memory."""
_SAID = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Cannot allocate memory|bad_alloc|ALLOC_FAILED"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out.

    torch raises a RuntimeError for it, on CPUs without a class of its own, so its text is looked at.
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_SAID.search(str(error)) or DEAD_READER in str(error))
