"""The processes that share the computing of features, which are those of the training."""

from datetime import timedelta

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """Return the processes of this command."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
