"""No update of a healthy run is refused, and every spike is.

`healthy_runs.npz` has loss and gradient norm of every update of runs of 600 steps, of all objectives, on
images of 32² with a ViT of two blocks or a small ResNet, all recorded with guard.spike=null.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.loader import Batch
from pretrain.engines.step import StepResult
from pretrain.monitoring.config import GuardConfig
from pretrain.monitoring.guard import Guard

with np.load(Path(__file__).with_name("healthy_runs.npz")) as stored:
    RUNS = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored.files}
WINDOW = GuardConfig().window
SPIKES = {WINDOW: 3.0, 137: math.inf, 250: 10.0, 400: math.nan, 401: 100.0, 599: 3.0}
"""Factors of the spikes that are injected, by update."""


def replay(series: torch.Tensor) -> list[int]:
    """Return the updates that the guard refuses, of a series (updates, 2) of loss and gradient norm."""
    guard = Guard(GuardConfig(), Path("unused"), nn.Identity(), torch.device("cpu"))
    refused = []
    batch = Batch(0, np.zeros(1, np.int64), np.zeros(1, np.int64), torch.zeros(1), [], [], [])
    for step, (loss, norm) in enumerate(series):
        accepted = bool(norm <= guard.limit(loss)) and bool(norm.isfinite())
        guard.watch(batch, StepResult({"loss": loss, "grad_norm": norm}, torch.zeros(1), torch.zeros(1, 1)))
        if not accepted:
            refused.append(step)
    return refused


def test_there_are_ten_runs_of_every_objective():
    assert len(RUNS) >= 10 and all(series.shape == (600, 2) for series in RUNS.values())


@pytest.mark.parametrize("name", RUNS)
def test_no_update_of_a_healthy_run_is_refused(name: str):
    assert replay(RUNS[name]) == []


@pytest.mark.parametrize("part", [0, 1], ids=["loss", "grad_norm"])
@pytest.mark.parametrize("name", RUNS)
def test_every_spike_is_refused_and_nothing_else(name: str, part: int):
    series = RUNS[name].clone()
    for at, factor in SPIKES.items():
        # A spike stands out from the largest of the updates before it, spikes among them left out.
        series[at, part] = factor * RUNS[name][at - WINDOW : at, part].max()
    assert replay(series) == list(SPIKES)
