"""The processes that share the computing of features, which are those of the training."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState

from pretrain.distributed import cpu_group, on_all_ranks, rank

T = TypeVar("T")
LONGEST = timedelta(hours=12)
"""Longest time that processes wait for each other outside of training."""


def processes() -> PartialState:
    """Return the processes of this command."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST)


def on_first(work: Callable[[], T]) -> T:
    """Return on all processes what `work` returns on the first one, which alone calls it.

    The others wait for it. An error is raised on all of them, so that none waits for a process that has
    ended.
    """
    outcomes: list[Any] = on_all_ranks(lambda: work() if rank() == 0 else None, cpu_group(LONGEST))
    found: T = outcomes[0]
    return found
