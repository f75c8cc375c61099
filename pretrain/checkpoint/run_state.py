"""The state of a run that a checkpoint holds: saved, resumed, rolled back."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.checkpoint import damage, folders, store
from pretrain.checkpoint.config import OnDamage
from pretrain.checkpoint.saver import Saver
from pretrain.engines import Engine
from pretrain.monitoring.guard import Guard
from pretrain.monitoring.online_probe import OnlineProbe

if TYPE_CHECKING:  # a validation reads the configuration, which reads that of checkpoints
    from pretrain.supervised.validation import Validation

log = logging.getLogger(__name__)


@dataclass
class RunState:
    """A run's engine, guard, probe, score on val and number of finished steps."""

    engine: Engine
    guard: Guard
    probe: OnlineProbe | None
    validation: Validation | None = None
    step: int = 0

    @property
    def ended_early(self) -> bool:
        """Whether the run ends early, because its score on val has stopped rising (`objective.patience`)."""
        return self.validation is not None and self.validation.ended

    @property
    def batch(self) -> int:
        """The next batch's place in the order of the data."""
        return self.step + self.guard.skipped_batches

    def tensors(self) -> dict[str, Any]:
        """Return the state as nested dicts, under names that do not depend on engine or world size.

        The tensors are those that train, not copies of them.
        """
        state: dict[str, Any] = {**self.engine.state(), "guard": self.guard.state(), "step": self.step}
        if self.probe:
            state["probe"] = self.probe.state()
        if self.validation:
            state["validation"] = self.validation.state()
        return state

    def rollback(self, saver: Saver) -> None:
        """Return to the newest checkpoint and skip the data up to the last refused update.

        Raises UserError if there is no checkpoint or it has been returned to often enough.
        """
        self.guard.check_rewind(saver.step)
        saver.wait()
        self.restore(folders.folder(saver.checkpoints, saver.step))
        self.guard.skip_batches(self.step)

    def resume(self, checkpoints: Path, on_damage: OnDamage) -> Path | None:
        """Continue from the newest checkpoint and return its path; None if no checkpoint exists.

        All ranks call it and take the same decision. Raises UserError if the checkpoint is damaged and
        `on_damage` is "refuse" or no earlier one exists.
        """
        while (newest := folders.agreed_latest(checkpoints)) is not None:
            try:
                self.restore(newest)
                return newest
            except damage.Damaged as error:
                if on_damage == "refuse" or error.earlier is None:
                    raise
                log.warning("%s; continuing from %s", error.found, error.earlier.name)
                damage.set_aside(newest)
        return None

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint; all ranks call it, and all raise UserError if it is damaged."""
        state = self.tensors()
        store.restore(folder, state, optional="probe")
        if self.probe and "probe" not in state:
            log.info("the online probe begins anew: %s has none for these classes", folder.name)
        self.engine.load(state)
        self.guard.load(state["guard"])
        if self.validation:
            self.validation.load(state["validation"])
        if self.probe:
            self.probe.forget()
        self.step = int(state["step"])
