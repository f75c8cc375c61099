"""Refuses updates that would do harm: NaN, infinity, and spikes of loss or gradient norm.

What is refused is decided on the device, from scalars that are equal on all ranks; the host looks at it
when it looks at the device anyway. A refused step leaves parameters, moments and buffers as they were.
"""

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from data_pipeline.loader import Batch
from isotorus import jsonl
from isotorus.errors import UserError
from isotorus.section import Section
from pretrain.distributed import rank
from pretrain.engines.step import StepResult

log = logging.getLogger(__name__)

_LEAST_SPREAD = 0.05
"""Of a median: absolute deviations are taken as at least this, lest a flat loss make noise a spike."""


class GuardConfig(Section):
    spike: PositiveFloat | None = 10.0
    """An update is refused whose loss or gradient norm is this many median absolute deviations above the
    median of the last `window` accepted ones (at least half above it, with 10); null: only if it is NaN or
    infinite."""
    window: PositiveInt = 100
    """Accepted updates that a spike is told by; before there are as many, nothing is taken for one."""
    patience: PositiveInt = 3
    """Updates refused in a row after which the run returns to its newest checkpoint and passes over the data
    up to there."""
    rewinds: NonNegativeInt = 2
    """Returns to the same checkpoint before the run is given up."""


class _Step(NamedTuple):
    """A step that the host has not looked at."""

    batch: int
    """Its batch's place in the order of data."""
    samples: list[int]
    """Of this rank."""
    found: Tensor
    """Loss, gradient norm, the limit of each, and whether the update was accepted."""
    broken: Tensor
    """Views whose projections on this rank are not finite."""


class Guard:
    """`limit` decides on an update, `watch` remembers it, `report` tells of it at logged steps."""

    def __init__(self, config: GuardConfig, folder: Path, networks: nn.Module, device: torch.device) -> None:
        self.config, self.path = config, folder / "skipped.jsonl"
        self.skipped = 0
        """Updates refused since the run began."""
        self.passed_over = 0
        """Batches that the run has left out: step t trains on batch t + passed_over."""
        self.row = 0
        """Updates refused one after another, up to the last report."""
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
        """The gradient norm up to which an update with this loss is accepted; a scalar on the device."""
        # No norm is as small as −1, and NaN compares as false.
        return torch.where(loss <= self._limits[0], self._limits[1], -1.0)

    def watch(self, batch: Batch, result: StepResult) -> None:
        """After each step, refused or not."""
        found = torch.stack([result.parts["loss"], result.parts["grad_norm"]]).float()
        accepted = (found <= self._limits).all()
        broken = (~result.projections.isfinite()).flatten(1).any(1)
        values = torch.cat([found, self._limits, accepted[None]])
        self._steps.append(_Step(batch.step, batch.indices.tolist(), values, broken))
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(torch.where(accepted, buffer, kept))
            kept.copy_(buffer)
        if self.config.spike:
            slots = torch.arange(self.config.window, device=found.device)
            slot = slots == self._accepted % self.config.window
            self._history = torch.where(slot & accepted, found[:, None], self._history)
            self._accepted += accepted
            self._limits = self._spike_limits()

    def _spike_limits(self) -> Tensor:
        """Of loss and gradient norm; without enough history, the largest finite number."""
        none = torch.full_like(self._history[:, 0], torch.finfo(torch.float32).max)
        if self.config.spike is None:
            return none
        median = _median(self._history)
        deviation = _median((self._history - median[:, None]).abs())
        limits = median + self.config.spike * torch.maximum(deviation, _LEAST_SPREAD * median.abs())
        return torch.where(self._accepted >= self.config.window, limits, none)

    def report(self) -> bool:
        """Look at the steps since the last report; on all ranks alike, which wait for the device.

        Writes the refused ones to skipped.jsonl. Whether they were too many in a row, so that the run has
        to be taken back; what came after those does not count.
        """
        steps, self._steps = self._steps, []
        refused = []
        values = torch.stack([step.found for step in steps]).tolist() if steps else []
        for step, found in zip(steps, values, strict=True):
            if found[-1]:
                self.row = 0
                continue
            self.row, self._last, self.skipped = self.row + 1, step.batch, self.skipped + 1
            refused.append((step, found))
            if self.row == self.config.patience:
                break
        if refused:
            self._tell(refused)
        return self.row >= self.config.patience

    def _tell(self, refused: list[tuple[_Step, list[float]]]) -> None:
        mine = [(step.samples, step.broken.nonzero().flatten().tolist()) for step, _ in refused]
        everyone: list[list[tuple[list[int], list[int]]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine)
        rows = []
        for (step, found), *shares in zip(refused, *everyone, strict=True):
            broken = [
                f"view {view} on rank {number}" for number, (_, views) in enumerate(shares) for view in views
            ]
            loss, norm, loss_limit, norm_limit, _ = found
            rows.append(
                {
                    "batch": step.batch + 1,
                    "step": step.batch + 1 - self.passed_over,
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
            self._append(rows)
            log.warning(
                "%d updates refused up to step %d, the last for %s", len(rows), rows[-1]["step"], self._reason
            )

    def check_rewind(self, step: int) -> None:
        """Raise UserError if the run was taken back to `step` often enough, or has no checkpoint (step 0)."""
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

    def pass_over(self, step: int) -> None:
        """The run has been taken back to `step`: leave out the data from there to the last refused update."""
        self.row, self.passed_over = 0, self._last + 1 - step
        if rank() == 0:
            row = {"batch": self._last + 1, "taken_back_to": step, "passed_over": self.passed_over}
            self._append([row])
            log.warning("taken back to step %d, passing over the data up to batch %d", step, self._last + 1)

    def state(self) -> dict[str, Any]:
        """For the checkpoint; after `report`."""
        assert not self._steps
        count, window = int(self._accepted), self.config.window
        oldest_first = self._history.roll(-(count % window), 1) if count > window else self._history
        return {
            "history": oldest_first[:, :count].tolist(),
            "row": self.row,
            "skipped": self.skipped,
            "passed_over": self.passed_over,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state, whatever window it had."""
        history = torch.tensor(state["history"])[:, -self.config.window :]
        count = history.shape[1]
        self._history[:, :count] = history
        self._accepted.fill_(count)
        self._limits = self._spike_limits()
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            kept.copy_(buffer)
        self.row, self.passed_over = state["row"], state["passed_over"]
        # A run that is taken back has still refused what it refused.
        self.skipped = max(self.skipped, state["skipped"])

    def trim(self, step: int) -> None:
        """Drop what skipped.jsonl has of batches that will come again, continuing after `step`; on rank 0."""
        kept = [row for row in jsonl.read(self.path) if row["batch"] <= step + self.passed_over]
        if self.path.exists():
            jsonl.replace(self.path, kept)

    def _append(self, rows: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        jsonl.append(self.path, rows)


def _median(x: Tensor) -> Tensor:
    """Of each row of (n, window), the upper one; by sorting, as `torch.median` has no deterministic form."""
    return x.sort(dim=1).values[:, x.shape[1] // 2]


def _reason(loss: float, norm: float, loss_limit: float, norm_limit: float, broken: list[str]) -> str:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        where = f"NaN or infinity in the projections of {', '.join(broken)}"
        return where if broken else "a gradient overflow"
    if loss > loss_limit:
        return f"a loss of {loss:.4g}, above {loss_limit:.4g}"
    return f"a gradient norm of {norm:.4g}, above {norm_limit:.4g}"
