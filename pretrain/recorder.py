"""What rank 0 tells the world of a run: its folder, metrics.jsonl, MLflow and the terminal."""

import logging
import time
from typing import Any

import torch
import yaml

from isotorus.files import atomic
from isotorus.jsonl import MetricsFile
from pretrain import tracking
from pretrain.config import Config, flatten
from pretrain.cost import accelerators
from pretrain.cost.flops import flops_per_image
from pretrain.distributed import world_size
from pretrain.engines.networks import uses_bf16
from pretrain.monitoring import collapse
from pretrain.preflight import Plan
from pretrain.progress import Progress
from pretrain.tracking import Mirror

log = logging.getLogger(__name__)


class Recorder:
    """Writes the resolved configuration at once, then a row a logged step."""

    def __init__(self, config: Config, plan: Plan, start: int, device: torch.device) -> None:
        self.config, self.images = config, len(plan.sources)
        config.folder.mkdir(parents=True, exist_ok=True)
        resolved = config.model_dump(mode="json")
        with atomic(config.folder / "config.yaml") as file:
            file.write(yaml.safe_dump(resolved, sort_keys=False).encode())
        self.file = MetricsFile(config.folder / "metrics.jsonl", start)
        self.progress = Progress(config.name, start, config.steps)
        self.mirror = _start_mirror(config)
        self._seconds_at_peak = _seconds_at_peak(config, plan, device)

    def write(self, step: int, measured: dict[str, float]) -> None:
        """Log what was measured after `step` steps, and warn of what a person should know."""
        samples = step * self.config.data.batch_size
        row: dict[str, Any] = {
            "step": step,
            "samples": samples,
            "epoch": samples / self.images,
            **measured,
            "time": time.time(),
        }
        if self._seconds_at_peak:
            row["mfu"] = measured["images_per_second"] * self._seconds_at_peak
        self.file.write(row)
        self.progress.show(row)
        for warning in collapse.warnings(row):
            log.warning(warning)

    def sync(self) -> None:
        """Before a checkpoint is saved: its rows are to be on the disk no later than itself."""
        self.file.sync()

    def take_back(self, step: int) -> None:
        """Drop what metrics.jsonl has after `step`, whose steps will come again."""
        self.file = MetricsFile(self.config.folder / "metrics.jsonl", step)
        if self.mirror:
            self.mirror.read_again()

    def close(self, status: str) -> None:
        """Flush everything; `status` is MLflow's: FINISHED, KILLED (asked to stop) or FAILED."""
        self.progress.close()
        if self.mirror:
            # What failed has something to say, and others wait for it.
            self.mirror.finish(status, timeout=10.0 if status == "FAILED" else 60.0)


def catch_up(config: Config) -> None:
    """Send what MLflow missed of a finished run, if its store was away then."""
    if not tracking.known(config.folder).get("complete") and (mirror := _start_mirror(config)):
        mirror.finish("FINISHED")


def _start_mirror(config: Config) -> Mirror | None:
    if not config.tracking.enabled:
        return None
    mirror = Mirror(config.folder, config.name, config.tracking, flatten(config.model_dump(mode="json")))
    mirror.start()
    return mirror


def _seconds_at_peak(config: Config, plan: Plan, device: torch.device) -> float | None:
    """What an image would take if all GPUs did the model's FLOPs at their peak; None where that is unknown.

    CPUs have no stated peak, so there is no MFU of them.
    """
    found = accelerators.detect(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if found is None:
        return None
    peak = found.peak("bf16" if uses_bf16(config.engine, device) else "fp32")
    return flops_per_image(config, plan.encoder_kwargs, plan.embedding_width) / (peak * world_size())
