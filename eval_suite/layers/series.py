"""Measure the blocks of checkpoint after checkpoint, on the same images."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table
from torch import Tensor

from data_pipeline.dataset.index import Dataset
from data_pipeline.targets.targets import load_targets
from eval_suite import tracking
from eval_suite.attempts import reason
from eval_suite.features.augmented import view_batches
from eval_suite.inputs.checkpoints import Checkpoint
from eval_suite.layers import bending, quantities
from eval_suite.layers.blocks import measurable
from eval_suite.layers.images import load
from eval_suite.layers.measure import Subject, Trace, bends_of, holonomy_maps, measure
from eval_suite.report import pictures
from isotorus import randomness
from isotorus.errors import UserError
from pretrain.models.blocks import depth_blocks
from pretrain.models.description import EncoderDescription

log = logging.getLogger(__name__)


def periodic(dataset: Dataset, file: str, column_period: str, key_column: str) -> NDArray[np.float64]:
    """Read a column of a table as angles (n,) in radians, one period being 2π; nan for samples without value.

    `column_period` is COLUMN=PERIOD. Raises UserError for another form, and as `load_targets` does.
    """
    column, _, period = column_period.rpartition("=")
    try:
        length = float(period)
    except ValueError:
        length = 0.0
    if not column or not (math.isfinite(length) and length > 0):
        raise UserError(
            f"--period {column_period}: expected COLUMN=PERIOD with a number above 0, such as hour=24"
        )
    targets = load_targets(dataset, file, key_column, [column], "regression")
    angles: NDArray[np.float64] = np.where(targets.known, targets.values[:, 0], np.nan) * (2 * np.pi / length)
    return angles


def readable(checkpoints: Sequence[Checkpoint]) -> tuple[list[Checkpoint], list[dict[str, str]]]:
    """Return the checkpoints whose description can be read, by run and step, and why the others cannot.

    Raises UserError if none can.
    """
    sound, failures = [], []
    first: UserError | None = None
    for checkpoint in checkpoints:
        try:
            checkpoint.require_whole()
            sound.append((str(checkpoint.root), checkpoint.encoder.step, checkpoint))
        except UserError as error:
            first = first or error
            failures.append({"title": str(checkpoint.folder), "reason": str(error)})
    if first and not sound:
        raise first
    return [checkpoint for *_, checkpoint in sorted(sound, key=lambda each: each[:2])], failures


@dataclass(frozen=True)
class Survey:
    """The images that all checkpoints are measured on, and how they are measured."""

    dataset: Dataset
    labels: NDArray[np.float64] | None
    """Periodic labels of all samples in radians, as from `periodic`; None to rotate images instead."""
    images: int
    """Largest number of images, drawn by `seed`."""
    few: int
    """Number of images for quantities that need derivatives."""
    batch: int
    """Number of images in a forward pass."""
    seed: int
    """Seed of all random choices."""

    def rows(self) -> NDArray[np.int64]:
        """Return the sample numbers of the images."""
        return randomness.rows(len(self.dataset), self.images, self.seed)

    def measure(
        self, checkpoints: Sequence[Checkpoint], chosen: tuple[str, ...], *, quiet: bool
    ) -> dict[str, Any]:
        """Measure all checkpoints; return the runs with their values, and the checkpoints that failed.

        Checkpoints of a run must follow each other in the order of their steps. `quiet` hides the progress
        bar.
        """
        runs: dict[str, dict[str, Any]] = {}
        failures: list[dict[str, str]] = []
        before: dict[str, Trace] = {}
        last = {_home(checkpoint): checkpoint for checkpoint in checkpoints}
        with Progress(transient=True, disable=quiet, console=Console(stderr=True)) as progress:
            task = progress.add_task("layers", total=len(checkpoints) + len(last))
            for checkpoint in checkpoints:
                home = _home(checkpoint)
                title = f"{checkpoint.name}, step {checkpoint.encoder.step}"
                progress.update(task, description=title)
                try:
                    subject = self.subject(checkpoint)
                    values, before[home] = measure(subject, chosen, before.get(home))
                except Exception as error:  # whatever it is, the other checkpoints can still be measured
                    log.debug("%s", title, exc_info=True)
                    failures.append({"title": title, "reason": reason(error)})
                    continue
                finally:
                    progress.advance(task)
                names = [block.name for block in subject.blocks]
                if home not in runs:
                    progress.update(task, description=f"{checkpoint.name}, untrained")
                    runs[home] = _run(checkpoint, names)
                    runs[home]["untrained"] = self._untrained(checkpoint, chosen, failures)
                    progress.advance(task)
                run = runs[home]
                run["checkpoints"].append(
                    {
                        "step": checkpoint.encoder.step,
                        "folder": str(checkpoint.folder),
                        "weights": checkpoint.weights_sha256,
                        "values": values,
                    }
                )
                if "holonomy" in chosen:
                    run["holonomy_maps"] = self._mapped(subject, checkpoint.encoder)
                if "bending" in chosen and checkpoint is last[home]:
                    run["paths"] = self._paths(subject, checkpoint)
        return {"runs": list(runs.values()), "failures": failures}

    def _untrained(
        self, checkpoint: Checkpoint, chosen: tuple[str, ...], failures: list[dict[str, str]]
    ) -> dict[str, Any] | None:
        """Measure the encoder as it was initialised; None if that fails, which `failures` then says."""
        try:
            return measure(self.subject(checkpoint, untrained=True), chosen, None)[0]
        except Exception as error:  # whatever it is, the checkpoints are measured
            log.debug("untrained", exc_info=True)
            failures.append({"title": f"{checkpoint.name}, untrained", "reason": reason(error)})
            return None

    def _paths(self, subject: Subject, checkpoint: Checkpoint) -> list[dict[str, Any]]:
        """Return how paths of augmented images bend in a checkpoint, beside the same encoder untrained."""
        encoder = checkpoint.untrained().eval().to(subject.device)
        names = {block.name for block in subject.blocks}
        blocks = [block for block in depth_blocks(encoder) if block.name in names]
        trained = bends_of(subject, subject.encoder, subject.blocks)
        return bending.beside(trained, bends_of(subject, encoder, blocks))

    def _mapped(self, subject: Subject, described: EncoderDescription) -> list[dict[str, Any]]:
        """Return holonomy maps of the first images, with thumbnails for the page."""
        return [
            {
                "image": pictures.thumbnail(self.dataset, row, described.channels),
                "sample": row,
                "defect": defect,
            }
            for row, defect in zip(self.rows().tolist(), holonomy_maps(subject), strict=False)
        ]

    def subject(self, checkpoint: Checkpoint, *, untrained: bool = False) -> Subject:
        """Load a checkpoint's encoder, onto the GPU if there is one, and the images as it takes them.

        If `untrained`, the encoder is as it was initialised.
        """
        described = checkpoint.encoder
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        encoder = checkpoint.untrained() if untrained else checkpoint.pretrained()
        encoder = encoder.eval().to(device)
        rows = self.rows()
        images = load(self.dataset, rows, described)
        return Subject(
            encoder=encoder,
            blocks=measurable(encoder, depth_blocks(encoder), images[:2].to(device)),
            images=images,
            labels=None if self.labels is None else self.labels[rows],
            mean=tuple(described.mean),
            std=tuple(described.std),
            views=self._views(described),
            few=self.few,
            batch=self.batch,
            seed=self.seed,
            device=device,
        )

    def _views(self, described: EncoderDescription) -> Callable[[], Tensor]:
        """Return a function that makes augmented views as in the training of an encoder."""

        def views() -> Tensor:
            batches = view_batches(
                described,
                self.dataset,
                views=quantities.LANCZOS_VIEWS,
                seed=self.seed,
                device=torch.device("cpu"),
            )
            return next(batches)[:, : quantities.LANCZOS_IMAGES]

        return views

    def estimate_first(self, checkpoints: Sequence[Checkpoint], chosen: Sequence[str]) -> dict[str, float]:
        """Estimate as `estimate` does, by the first checkpoint that can be measured.

        Raises UserError if there is one checkpoint only and it cannot.
        """
        for checkpoint in checkpoints:
            try:
                return self.estimate(checkpoint, chosen)
            except UserError:  # which `measure` reports
                if len(checkpoints) == 1:
                    raise
        return dict.fromkeys(["images", *chosen], 0.0)

    def estimate(self, checkpoint: Checkpoint, chosen: Sequence[str]) -> dict[str, float]:
        """Estimate the seconds of each quantity for one checkpoint, from one timed forward pass.

        The entry "images" is the time of the forward passes that all quantities share.
        """
        subject = self.subject(checkpoint)
        few = subject.images[: min(16, len(subject.images))].to(subject.device)
        with torch.inference_mode():
            subject.encoder(few)
            started = time.perf_counter()
            subject.encoder(few)
        work = quantities.Work(
            images=len(subject.images),
            few=min(self.few, len(subject.images)),
            blocks=len(subject.blocks),
            width=checkpoint.encoder.embedding_width,
            weights=sum(p.numel() for block in subject.blocks for p in block.module.parameters()),
            seconds_an_image=(time.perf_counter() - started) / len(few),
        )
        shared = {"images": 2 * work.images * work.seconds_an_image}
        return shared | {name: quantities.seconds(name, work) for name in chosen}


def _home(checkpoint: Checkpoint) -> str:
    """Return what the checkpoints of a series share: the run's folder, or that which they lie in.

    Averaged weights are a series of their own.
    """
    home = str(checkpoint.run or checkpoint.folder.parent)
    return f"{home}, averaged" if checkpoint.is_average else home


def _run(checkpoint: Checkpoint, blocks: list[str]) -> dict[str, Any]:
    """Return the entry of a checkpoint's run in layers.json, still without checkpoints."""
    return {
        "name": checkpoint.name,
        # MLflow takes results of a run for those of its last weights.
        "folder": str(checkpoint.run) if checkpoint.run and not checkpoint.is_average else None,
        "encoder": checkpoint.encoder.name,
        "blocks": blocks,
        "checkpoints": [],
    }


def publish(results: Mapping[str, Any], out: Path, own: str) -> list[str]:
    """Send all values, and the files in `out`, to the MLflow run of each training that has one.

    `own` is the user's store; runs in another one are left out. Returns lines that tell the user where to
    see them.
    """
    lines = []
    for run in results["runs"]:
        record = tracking.store(Path(run["folder"])) if run["folder"] else None
        if record is None:
            continue
        if not tracking.is_own(record, own):
            lines.append(tracking.not_sent(record))
            continue
        files = [out / "layers.html", out / "layers.json"]
        last = run["checkpoints"][-1]
        # After the first failure nothing more is sent.
        if all(
            tracking.send(record, own, c["step"], _by_block(c), files if c is last else [], "eval/layers")
            for c in run["checkpoints"]
        ):
            lines.append(tracking.where(own))
    return list(dict.fromkeys(lines))


def _by_block(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """Return all values of a checkpoint by their name in MLflow, layers/<quantity>/<block>."""
    return {
        f"layers/{name}/{block}": value
        for name, row in checkpoint["values"].items()
        for block, value in enumerate(row)
        if value is not None
    }


def show_costs(estimate: Mapping[str, float]) -> None:
    """Print a table of all quantities with the estimated seconds for one checkpoint."""
    table = Table("--metrics", "", Column("seconds", justify="right"), "default", box=SIMPLE, pad_edge=False)
    for quantity in quantities.QUANTITIES:
        seconds = f"{estimate[quantity.name]:.1f}"
        table.add_row(quantity.name, quantity.title, seconds, "yes" if quantity.default else "no")
    table.add_row("", "the images through the encoder", f"{estimate['images']:.1f}", "always")
    Console().print(table)
    Console().print(
        "Estimated for one checkpoint on this machine, from one timed forward pass.", highlight=False
    )
