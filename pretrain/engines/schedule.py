"""The learning rate as a pure function of the step."""

import math
from typing import Any


def learning_rate(step: int, steps: int, peak: float, warmup_steps: int, final_ratio: float) -> float:
    """Rise linearly to `peak`, then fall by half a cosine to `peak * final_ratio` at the last step.

    `step` counts from 0. This is the cosine of Loshchilov & Hutter 2017 without restarts.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (final_ratio + (1 - final_ratio) * cosine)


def rate_of(step: int, steps: int, optimizer: dict[str, Any]) -> float:
    """Return the learning rate at a step; `optimizer` has the fields of `OptimizerConfig`."""
    return learning_rate(step, steps, optimizer["lr"], optimizer["warmup_steps"], optimizer["final_lr_ratio"])
