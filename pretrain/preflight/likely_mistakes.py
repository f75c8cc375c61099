"""Warn about settings that are possible but likely a mistake."""

import logging
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.dataset.index import Dataset
from data_pipeline.transforms.action_checks import doubts
from pretrain.checkpoint import damage
from pretrain.config import Config
from pretrain.engines.schedule import rate_of

log = logging.getLogger(__name__)


def warn(config: Config, newest: Path | None, datasets: Sequence[Dataset] = ()) -> None:
    """Log a line for each setting of actions or learning rate that is possible but likely a mistake."""
    for doubt in doubts(config.views, datasets, config.seed):
        log.warning("%s", doubt)
    optimizer = config.optimizer.model_dump()
    if optimizer["warmup_steps"] >= config.steps:
        log.warning(
            "optimizer.warmup_steps=%d is no less than steps=%d: the learning rate only rises, to %.2g where "
            "optimizer.lr is %.2g; set fewer warm-up steps, such as %d",
            optimizer["warmup_steps"], config.steps, rate_of(config.steps - 1, config.steps, optimizer),
            optimizer["lr"], config.steps // 10,
        )  # fmt: skip
    if newest is None:
        return
    saved = damage.describe(newest)
    step, steps = saved["step"], saved["config"]["steps"]
    before = rate_of(min(step, steps - 1), steps, saved["config"]["optimizer"])
    now = rate_of(step, config.steps, optimizer)
    if config.steps > step > 0 and steps != config.steps and now > 2 * before:
        log.warning(
            "the learning rate rises from %.2g to %.2g at step %d, because the schedule now has %d steps "
            "and had %d; to go on at a low rate instead, lower optimizer.lr and set "
            "optimizer.warmup_steps=0",
            before, now, step, config.steps, steps,
        )  # fmt: skip
