"""What rank 0 records of a run: config.yaml, metrics.jsonl, the copy in MLflow, and lines on the terminal."""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from isotorus import jsonl
from isotorus.jsonl import StepLog
from pretrain.config import Config, flatten
from pretrain.cost import accelerators
from pretrain.cost.flops import flops_per_image
from pretrain.distributed import world_size
from pretrain.engines import Engine
from pretrain.engines.automatic import in_words
from pretrain.engines.networks import uses_bf16
from pretrain.monitoring import collapse, held_out, mlflow_mirror, mlflow_run
from pretrain.preflight.inputs import RunInputs
from pretrain.recording import config_history
from pretrain.recording.progress import Progress

log = logging.getLogger(__name__)


class Recorder:
    """Writes the resolved configuration at once, then a row for each logged step."""

    def __init__(self, config: Config, inputs: RunInputs, start: int, engine: Engine) -> None:
        """Continue the records after step `start`; drop later rows, because these steps are repeated."""
        self.config, self.images = config, len(inputs.sources)
        self.status = "FAILED"
        """How the run ended, in MLflow's words: FINISHED, KILLED (asked to stop) or FAILED."""
        config.folder.mkdir(parents=True, exist_ok=True)
        remarks = in_words(config.engine, engine.config)
        config_history.record(config.folder, config.model_dump(mode="json"), start, remarks)
        self.file = StepLog(config.folder / "metrics.jsonl", start)
        self.progress = Progress(config.name, start, config.steps)
        self.mirror = _mirror(config, start) if config.tracking.enabled else None
        self._seconds_at_peak = _seconds_at_peak(config, inputs, engine)
        self._thread = ThreadPoolExecutor(1, "recorder")
        self._writing: Future[None] | None = None

    def connect(self) -> None:
        """Begin to send to MLflow; called after the first step, which MLflow's import would delay."""
        if self.mirror:
            self.mirror.start()

    def write(
        self,
        step: int,
        measured: dict[str, float],
        covariance: Tensor,
        embedded: held_out.Embedded | None = None,
    ) -> None:
        """Log what was measured after `step` steps, and warn if it looks bad.

        Training goes on while a thread computes the measures that follow from the embeddings' covariance (on
        the CPU) and, if given, from the held-out images `embedded`, and writes the row. An error of the
        thread, for example on a full disk, is raised by the next `write`, `sync` or `rollback`.
        """
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
        self._wait()
        self._writing = self._thread.submit(self._write, row, covariance, embedded)

    def _write(
        self, measured: dict[str, Any], covariance: Tensor, embedded: held_out.Embedded | None
    ) -> None:
        """Write a row; the thread calls it."""
        row = collapse.conclude(measured, covariance)
        if embedded is not None:
            row |= held_out.conclude(embedded)
        self.file.write(row)
        self.progress.show(row)
        for warning in collapse.warnings(row):
            log.warning(warning)

    def _wait(self) -> None:
        """Wait until the last row is written."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def sync(self) -> None:
        """Force the rows to the disk; call it before a save, so that no checkpoint lacks its rows."""
        self._wait()
        self.file.sync()

    def rollback(self, step: int) -> None:
        """Drop the rows of metrics.jsonl after `step`, because these steps are repeated."""
        self._wait()
        self.file = StepLog(self.config.folder / "metrics.jsonl", step)
        if self.mirror:
            self.mirror.read_again(step)

    def close(self) -> None:
        """Send the remaining rows and `status` to MLflow, and end the progress bar."""
        self._thread.shutdown()
        self.progress.close()
        if self.mirror:
            # A failed run waits less: other ranks and the launcher wait for its error.
            again = "run the same command again"
            if self.config.resume == "never" and self.status != "FINISHED":
                again += " with resume=auto"
            self.mirror.finish(self.status, 10.0 if self.status == "FAILED" else 60.0, again)


def catch_up(config: Config) -> None:
    """Send the rows of a finished run that MLflow lacks: its store did not answer, or has changed."""
    if not config.tracking.enabled:
        return
    # The configuration of the training; that of the present command may differ.
    trained = config_history.present(config.folder) | {"name": config.name, "runs": config.runs}
    steps = max((row["step"] for row in jsonl.read(config.folder / "metrics.jsonl", "step")), default=0)
    if steps and not mlflow_run.is_complete(config.folder, config.name, config.tracking):
        _mirror(config, steps, trained).finish("FINISHED", timeout=300.0)


def _mirror(config: Config, start: int, trained: dict[str, Any] | None = None) -> mlflow_mirror.Mirror:
    """Return what sends the rows to MLflow, with the parameters in `trained` or else those of `config`."""
    values = trained or flatten(config.model_dump(mode="json"))
    # The address of MLflow says nothing about the run, and changes when the store is moved.
    parameters = {name: x for name, x in values.items() if not name.startswith("tracking.")}
    changes = [x for x in config_history.changes(config.folder) if not x.name.startswith("tracking.")]
    return mlflow_mirror.Mirror(config.folder, config.name, config.tracking, parameters, start, changes)


def _seconds_at_peak(config: Config, inputs: RunInputs, engine: Engine) -> float | None:
    """Return the seconds an image would take if all GPUs ran the model's FLOPs at their peak rate.

    None where the peak is unknown, as on CPUs: then no MFU is logged.
    """
    device = engine.device
    gpu = accelerators.detect(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        return None
    peak = gpu.peak("bf16" if uses_bf16(engine.config, device) else "fp32")
    return flops_per_image(config, inputs.encoder_kwargs, inputs.embedding_width) / (peak * world_size())
