"""Count over ranks the damaged images that the loader has replaced, and name them in corrupt.jsonl."""

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_pipeline.loader import Batch
from isotorus import jsonl
from isotorus.errors import UserError
from pretrain.distributed import count_over_ranks, rank, world_size

log = logging.getLogger(__name__)

_FREE = 10
"""Damaged images that every run may have, whatever `data.max_corrupt` says."""


class CorruptSamples:
    """Collects the replacements in this rank's batches; ranks exchange them at logged steps.

    corrupt.jsonl has a line for each replacement: the step, the sample's index and name, and the reason.
    """

    def __init__(self, folder: Path, start: int, batch_size: int, max_share: float) -> None:
        self.path, self.batch_size, self.max_share = folder / "corrupt.jsonl", batch_size, max_share
        self.count = 0
        if rank() == 0:  # drop what came after the checkpoint that the run continues from
            kept = [row for row in jsonl.read(self.path, "step") if row["step"] <= start]
            self.count = len(kept)
            if self.path.exists():
                jsonl.replace(self.path, kept)
        self._new: list[dict[str, Any]] = []

    def watch(self, batch: Batch) -> None:
        """Remember the replacements in a batch."""
        self._new += [{"step": batch.step + 1, **replaced._asdict()} for replaced in batch.replaced]

    def rollback(self, start: int) -> None:
        """Forget unreported replacements after the first `start` batches: later batches are repeated."""
        self._new = [row for row in self._new if row["step"] <= start]

    def report(self, step: int) -> int:
        """Return the number of replacements in the first `step` batches of the run, on all ranks.

        Raises UserError, on all ranks, when there are too many.
        """
        if count_over_ranks(len(self._new)):
            everyone: list[list[dict[str, Any]]] = [[] for _ in range(world_size())]
            dist.all_gather_object(everyone, self._new)
            self._new = []
            if rank() == 0:
                self._write([row for rows in everyone for row in rows])
        self.count = count_over_ranks(self.count if rank() == 0 else 0)
        if self.count > max(_FREE, self.max_share * step * self.batch_size):
            raise UserError(
                f"{self.count} of {step * self.batch_size} images read were damaged, more than "
                f"data.max_corrupt={self.max_share:g} allows; {self.path} names them: run "
                "isotorus verify on the data set, and repair it"
            )
        return self.count

    def _write(self, rows: list[dict[str, Any]]) -> None:
        rows.sort(key=lambda row: (row["step"], row["sample"]))
        jsonl.append(self.path, rows)
        self.count += len(rows)
        log.warning(
            "%d damaged images replaced (%d in all, see %s), first: %s: %s",
            len(rows),
            self.count,
            self.path,
            rows[0]["name"],
            rows[0]["reason"],
        )
