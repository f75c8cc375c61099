"""All that a checkpoint holds of a run."""

import logging
from pathlib import Path
from typing import Any

from pretrain import checkpoint
from pretrain.checkpoint import OnDamage
from pretrain.checkpoint.saver import Saver
from pretrain.engines import Engine
from pretrain.guard import Guard
from pretrain.monitoring.online_probe import OnlineProbe

log = logging.getLogger(__name__)


class RunState:
    """Engine, guard, probe and how many steps are done."""

    def __init__(self, engine: Engine, guard: Guard, probe: OnlineProbe | None) -> None:
        self.engine, self.guard, self.probe = engine, guard, probe
        self.step = 0

    @property
    def batch(self) -> int:
        """Which batch of the order of data comes next."""
        return self.step + self.guard.passed_over

    def tensors(self) -> dict[str, Any]:
        """Nested, by names that no engine or world size is in; those that train, not copies of them."""
        state: dict[str, Any] = {**self.engine.state(), "guard": self.guard.state(), "step": self.step}
        if self.probe:
            state["probe"] = self.probe.state()
        return state

    def take_back(self, saver: Saver) -> None:
        """Return to the newest checkpoint, to leave out the data since; raises UserError if it is no use."""
        self.guard.check_rewind(saver.step)
        saver.wait()
        self.restore(checkpoint.folder(saver.checkpoints, saver.step))
        self.guard.pass_over(self.step)

    def resume(self, checkpoints: Path, on_damage: OnDamage) -> Path | None:
        """Continue from the newest checkpoint; returns which that is, None if there is none.

        On all ranks, which decide alike. Raises UserError if it is damaged and `on_damage` is "refuse", or
        if there is none before it.
        """
        while (newest := checkpoint.agreed_latest(checkpoints)) is not None:
            try:
                self.restore(newest)
                return newest
            except checkpoint.Damaged as error:
                if on_damage == "refuse" or error.earlier is None:
                    raise
                log.warning("%s; continuing from %s", error.found, error.earlier.name)
                checkpoint.set_aside(newest)
        return None

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint; on all ranks, which all raise UserError if it is damaged."""
        state = self.tensors()
        checkpoint.restore(folder, state, optional="probe")
        if self.probe and "probe" not in state:
            log.info("the online probe begins anew: %s has none for these classes", folder.name)
        self.engine.load(state)
        self.guard.load(state["guard"])
        if self.probe:
            self.probe.forget()
        self.step = int(state["step"])
