"""Parts of an evaluation that may fail: the other parts go on, and the reason is kept."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from isotorus.errors import UserError, is_out_of_memory, one_line

log = logging.getLogger(__name__)
T = TypeVar("T")
C = TypeVar("C")


class Unmeasurable(ValueError):
    """The data are not enough for a measure or a picture; the message says what is missing."""


def reason(error: Exception) -> str:
    """Return in one line why something failed; an error that nobody foresaw is named by its type."""
    first = one_line((str(error).splitlines() or [""])[0])
    foreseen = isinstance(error, Unmeasurable | UserError | np.linalg.LinAlgError)
    return first if foreseen and first else f"{type(error).__name__}: {first}"


@contextmanager
def refused(say: Callable[[str], str]) -> Iterator[None]:
    """Raise an error of a model as the UserError that `say` makes of the reason.

    A UserError and an error of memory stay what they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # timm's models raise nearly every kind of exception
        if is_out_of_memory(error):
            raise
        raise UserError(say(reason(error))) from None


def each(checkpoints: Sequence[C], measure: Callable[[C], None]) -> list[str]:
    """Call `measure` for every checkpoint, also after one has failed.

    Returns a line for each that failed, with the reason. Raises UserError with the first reason if all did.
    """
    failed: list[str] = []
    for checkpoint in checkpoints:
        try:
            measure(checkpoint)
        except Exception as error:  # whatever it is, the others can still be measured
            if is_out_of_memory(error):
                raise
            log.debug("%s", checkpoint, exc_info=True)
            failed.append(reason(error))
    if failed and len(failed) == len(checkpoints):
        raise UserError(failed[0])
    return failed


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
