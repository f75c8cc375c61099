"""How the loops over pixels are compiled for CPUs."""

from collections.abc import Callable
from typing import Any

import numba


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function with numba, and cache the result on disk if there is a folder for it."""
    options: dict[str, Any] = {
        "nogil": True,
        # A called function that is not inlined may be optimised in one way in the process that compiles it,
        # and in another way in those that load the cache. The first run would round unlike all later ones.
        "forceinline": True,
        "error_model": "numpy",
        "fastmath": {"contract", "reassoc", "arcp", "nsz"},  # without the flags that assume there are no NaNs
    }
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder that it may write to
        return numba.njit(**options)(function)
