"""What rank 0 tells the world of a run: its folder, metrics.jsonl, MLflow and the terminal."""

import logging
import resource
import time
from typing import Any

import torch
import yaml

from pretrain import monitors, tracking
from pretrain.config import Config
from pretrain.metrics import MetricsFile
from pretrain.progress import Progress
from pretrain.tracking import Mirror

log = logging.getLogger(__name__)


class Recorder:
    """Writes the resolved configuration at once, then a row a logged step."""

    def __init__(self, config: Config, images: int, start: int) -> None:
        self.config, self.images = config, images
        config.folder.mkdir(parents=True, exist_ok=True)
        resolved = config.model_dump(mode="json")
        (config.folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
        self.file = MetricsFile(config.folder / "metrics.jsonl", start)
        self.progress = Progress(config.name, start, config.steps)
        self.mirror = _start_mirror(config)

    def write(self, step: int, measured: dict[str, float]) -> None:
        """Log what was measured after `step` steps, and warn of what a person should know."""
        samples = step * self.config.data.batch_size
        row: dict[str, Any] = {
            "step": step,
            "samples": samples,
            "epoch": samples / self.images,
            **measured,
            "memory_gib": _peak_memory() / 2**30,
            "time": time.time(),
        }
        self.file.write(row)
        self.progress.show(row)
        for warning in monitors.warnings(row):
            log.warning(warning)

    def close(self, status: str) -> None:
        """Flush everything; `status` is MLflow's, FINISHED or FAILED."""
        self.progress.close()
        self.file.close()
        if self.mirror:
            self.mirror.finish(status)


def catch_up(config: Config) -> None:
    """Send what MLflow missed of a finished run, if its store was away then."""
    if not tracking.known(config.folder).get("complete") and (mirror := _start_mirror(config)):
        mirror.finish("FINISHED")


def _start_mirror(config: Config) -> Mirror | None:
    if not config.tracking.enabled:
        return None
    mirror = Mirror(config.folder, config.name, config.tracking, _flatten(config.model_dump(mode="json")))
    mirror.start()
    return mirror


def _peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
