"""Parts of an evaluation that may fail: the other parts go on, and the reason is kept."""

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from isotorus.errors import UserError, one_line

log = logging.getLogger(__name__)
T = TypeVar("T")


class Unmeasurable(ValueError):
    """The data are not enough for a measure or a picture; the message says what is missing."""


def reason(error: Exception) -> str:
    """Return in one line why something failed; an error that nobody foresaw is named by its type."""
    first = one_line((str(error).splitlines() or [""])[0])
    foreseen = isinstance(error, Unmeasurable | UserError | np.linalg.LinAlgError)
    return first if foreseen and first else f"{type(error).__name__}: {first}"


def attempt(name: str, compute: Callable[[], T], left_out: dict[str, str]) -> T | None:
    """Return what `compute` returns; if it fails, put the reason under `name` into `left_out`.

    A warning names an error that nobody foresaw, which may be a fault of this program.
    """
    try:
        return compute()
    except Exception as error:  # whatever it is, the other parts can still succeed
        left_out[name] = reason(error)
        if not isinstance(error, Unmeasurable | UserError | np.linalg.LinAlgError):
            log.warning("warning: %s is left out, it failed with %s", name, left_out[name])
            log.debug("%s", name, exc_info=True)
        return None
