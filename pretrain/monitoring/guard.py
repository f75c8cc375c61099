"""Refuse harmful updates: those with NaN, infinity, or a spike of the loss or the gradient norm.

The decision is made on the device, from scalars that are equal on all ranks. The host reads it at logged
steps, when it waits for the device anyway. A refused update leaves parameters, moments and buffers unchanged.
"""

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.loader import Batch
from isotorus import jsonl
from isotorus.errors import UserError
from pretrain.distributed import rank
from pretrain.engines.step import StepResult
from pretrain.monitoring.config import GuardConfig

log = logging.getLogger(__name__)

_LEAST_SPREAD = 0.05
"""Smallest deviation, as a share of the median, so that noise on a flat loss does not count as a spike."""
_ABOVE_LARGEST = 2.0
"""A gradient norm up to this multiple of the largest of the window is no spike.

Gradient norms have heavy tails: where two numbers stand for an angle, one short pair can make that of a whole
batch ten times the median. In ten recorded healthy runs no norm was above 1.83 times the largest of the
hundred norms before it. The loss is a mean, and its tails are light.
"""


class _Step(NamedTuple):
    """A step whose outcome the host has not read yet."""

    batch: int
    """The batch's place in the order of the data."""
    samples: list[int]
    """Indices of this rank's samples."""
    outcome: Tensor
    """(5,): loss, gradient norm, the limit of each, and whether the update was accepted (0 or 1)."""
    broken: Tensor
    """(V,): whether a view's projections on this rank hold NaN or infinity."""


class Guard:
    """Decides which updates are refused (`limit`), and notes and records them (`watch`, `report`)."""

    def __init__(self, config: GuardConfig, folder: Path, networks: nn.Module, device: torch.device) -> None:
        self.config, self.path = config, folder / "skipped.jsonl"
        self.refused = 0
        """Number of updates refused since the run began."""
        self.skipped_batches = 0
        """Number of batches that rollbacks have skipped: step t trains on batch t + skipped_batches."""
        self.refused_in_a_row = 0
        """Number of updates refused one after another, up to the last report."""
        self._last = 0
        self._reason = ""
        self._rewinds = (0, 0)
        self._steps: list[_Step] = []
        self._history = torch.zeros(2, config.window, device=device)
        self._accepted = torch.zeros((), dtype=torch.int64, device=device)
        self._limits = self._spike_limits()
        self._buffers = list(networks.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]

    def limit(self, loss: Tensor) -> Tensor:
        """Return the largest gradient norm with which an update of this loss is accepted, on the device.

        Both are scalars. The limit is −1, which no norm reaches, if the loss itself is refused.
        """
        # A comparison with NaN is false.
        return torch.where(loss <= self._limits[0], self._limits[1], -1.0)

    def watch(self, batch: Batch, result: StepResult) -> None:
        """Note the outcome of a step; if it was refused, restore the buffers of the networks."""
        measured = torch.stack([result.parts["loss"], result.parts["grad_norm"]]).float()
        accepted = (measured <= self._limits).all()
        broken = (~result.projections.isfinite()).flatten(1).any(1)
        outcome = torch.cat([measured, self._limits, accepted[None]])
        self._steps.append(_Step(batch.step, batch.indices.tolist(), outcome, broken))
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(torch.where(accepted, buffer, kept))
            kept.copy_(buffer)
        if self.config.spike:
            slots = torch.arange(self.config.window, device=measured.device)
            slot = slots == self._accepted % self.config.window
            self._history = torch.where(slot & accepted, measured[:, None], self._history)
            self._accepted += accepted
            self._limits = self._spike_limits()

    def _spike_limits(self) -> Tensor:
        """Return the limits (2,) of loss and gradient norm: the largest float without enough history."""
        none = torch.full_like(self._history[:, 0], torch.finfo(torch.float32).max)
        if self.config.spike is None:
            return none
        median = _median(self._history)
        deviation = _median((self._history - median[:, None]).abs())
        limits = median + self.config.spike * torch.maximum(deviation, _LEAST_SPREAD * median.abs())
        limits[1] = torch.maximum(limits[1], _ABOVE_LARGEST * self._history[1].max())
        return torch.where(self._accepted >= self.config.window, limits, none)

    def report(self) -> bool:
        """Read the outcomes since the last report and write the refused updates to skipped.jsonl.

        Returns whether so many in a row were refused that the run has to be rolled back; steps after those do
        not count. All ranks call it, and wait for the device.
        """
        steps, self._steps = self._steps, []
        refused = []
        outcomes = torch.stack([step.outcome for step in steps]).tolist() if steps else []
        for step, outcome in zip(steps, outcomes, strict=True):
            if outcome[-1]:
                self.refused_in_a_row = 0
                continue
            self.refused_in_a_row += 1
            self._last, self.refused = step.batch, self.refused + 1
            refused.append((step, outcome))
            if self.refused_in_a_row == self.config.patience:
                break
        if refused:
            self._record(refused)
        return self.refused_in_a_row >= self.config.patience

    def _record(self, refused: list[tuple[_Step, list[float]]]) -> None:
        """Write refused updates, with the samples of all ranks, to skipped.jsonl and to the log."""
        mine = [(step.samples, step.broken.nonzero().flatten().tolist()) for step, _ in refused]
        everyone: list[list[tuple[list[int], list[int]]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine)
        rows = []
        for (step, outcome), *shares in zip(refused, *everyone, strict=True):
            broken = [
                f"view {view} on rank {number}" for number, (_, views) in enumerate(shares) for view in views
            ]
            loss, norm, loss_limit, norm_limit, _ = outcome
            rows.append(
                {
                    "batch": step.batch + 1,
                    "step": step.batch + 1 - self.skipped_batches,
                    "reason": _reason(loss, norm, loss_limit, norm_limit, broken),
                    "loss": loss,
                    "grad_norm": norm,
                    "loss_limit": loss_limit,
                    "grad_norm_limit": norm_limit,
                    "samples": [sample for samples, _ in shares for sample in samples],
                }
            )
        self._reason = str(rows[-1]["reason"])
        if rank() == 0:
            jsonl.append(self.path, rows)
            log.warning(
                "%d updates refused up to step %d, the last for %s", len(rows), rows[-1]["step"], self._reason
            )

    def check_rewind(self, step: int) -> None:
        """Raise UserError if the run has returned to `step` often enough, or has no checkpoint (step 0)."""
        before, returns = self._rewinds
        returns = returns if before == step else 0
        self._rewinds = step, returns + 1
        if step == 0 or returns == self.config.rewinds:
            tried, then = "there is no checkpoint yet", "begin again"
            if step:
                tried = f"returning to the checkpoint of step {step} has not helped ({returns} times)"
                then = "resume (from an earlier checkpoint, if you remove that one)"
            raise UserError(
                f"{self.config.patience} updates in a row were refused, the last for {self._reason}; "
                f"{tried}; {self.path} has their samples; {then} with a lower optimizer.lr, or with a higher "
                "guard.spike if they are sound"
            )

    def skip_batches(self, step: int) -> None:
        """Skip the data up to the last refused update, now that the run has returned to `step`."""
        self.refused_in_a_row, self.skipped_batches = 0, self._last + 1 - step
        if rank() == 0:
            row = {"batch": self._last + 1, "taken_back_to": step, "passed_over": self.skipped_batches}
            jsonl.append(self.path, [row])
            log.warning("rolled back to step %d, skipping the data up to batch %d", step, self._last + 1)

    def state(self) -> dict[str, Any]:
        """Return the guard's part of a checkpoint; call it after `report`."""
        assert not self._steps
        count, window = int(self._accepted), self.config.window
        oldest_first = self._history.roll(-(count % window), 1) if count > window else self._history
        return {
            "history": oldest_first[:, :count].tolist(),
            "row": self.refused_in_a_row,
            "skipped": self.refused,
            "passed_over": self.skipped_batches,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state, also if `window` was another then."""
        history = torch.tensor(state["history"])[:, -self.config.window :]
        count = history.shape[1]
        self._history[:, :count] = history
        self._accepted.fill_(count)
        self._limits = self._spike_limits()
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            kept.copy_(buffer)
        self.refused_in_a_row, self.skipped_batches = state["row"], state["passed_over"]
        # A rollback does not undo the count of refused updates.
        self.refused = max(self.refused, state["skipped"])

    def trim(self, step: int) -> None:
        """Drop rows of skipped.jsonl about batches after `step`, which are repeated; only rank 0 calls it."""
        kept = [row for row in jsonl.read(self.path, "batch") if row["batch"] <= step + self.skipped_batches]
        if self.path.exists():
            jsonl.replace(self.path, kept)


def _median(x: Tensor) -> Tensor:
    """Return the upper median of each row (n, window) -> (n,).

    It sorts, because `torch.median` has no deterministic form on GPUs.
    """
    return x.sort(dim=1).values[:, x.shape[1] // 2]


def _reason(loss: float, norm: float, loss_limit: float, norm_limit: float, broken: list[str]) -> str:
    """Say why an update was refused."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        where = f"NaN or infinity in the projections of {', '.join(broken)}"
        return where if broken else "a gradient overflow"
    if loss > loss_limit:
        return f"a loss of {loss:.4g}, above {loss_limit:.4g}"
    return f"a gradient norm of {norm:.4g}, above {norm_limit:.4g}"
