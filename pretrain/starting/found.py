"""What a recipe depends on: the facts of a packed data set, and the machine that trains."""

from dataclasses import dataclass

import torch

from data_pipeline.dataset.index import Dataset
from data_pipeline.preview.image_statistics import measure_images
from data_pipeline.preview.symmetry import differences
from isotorus.errors import UserError, one_line
from isotorus.processes import usable_cores
from pretrain.cost.accelerators import detect
from pretrain.cost.datasheets import KNOWN


@dataclass(frozen=True)
class Images:
    """The facts of a data set that decide the values of a recipe."""

    path: str
    count: int
    side: int
    """Median of the shorter side in pixels."""
    channels: int
    depth: int
    """Bits per channel, 8 or 16."""
    labelled: int
    classes: int
    groups: int | None
    remote: bool
    mirrored: dict[str, float]
    """Difference between images and their mirror images, by mirroring; see
    `data_pipeline.preview.symmetry`."""


@dataclass(frozen=True)
class Machine:
    """Accelerators and cores that the run will have."""

    gpu: str
    """A GPU's name in `pretrain.cost.datasheets`, or "cpu"."""
    gpus: int
    cores: int
    unknown: str = ""
    """What this machine calls its GPUs, if the datasheets do not have them and they count as H100s."""

    @property
    def note(self) -> str:
        """A sentence about GPUs that are not known; "" if they are."""
        if not self.unknown:
            return ""
        return (
            f"{self.unknown} is not among the accelerators whose speed and memory are known, so it counts as "
            "an H100: give --gpu with the most similar one."
        )


def images(data: Dataset, seed: int = 0) -> Images:
    """Return the facts of a data set; up to 2,000 of its images are decoded.

    Raises UserError if fewer than two images can be decoded.
    """
    facts = data.description
    measured = measure_images([data], data.channels, data.depth, seed, usable_cores())
    if len(measured.thumbnails) < 2:
        raise UserError(
            f"{data.path} has {len(measured.thumbnails)} images that can be decoded; pack more images"
        )
    return Images(
        path=data.path,
        count=len(data),
        side=min(facts.width.median, facts.height.median),
        channels=data.channels,
        depth=data.depth,
        labelled=sum(facts.class_counts),
        classes=len(facts.classes),
        groups=facts.groups,
        remote=data.remote,
        mirrored=differences(measured.thumbnails),
    )


def machine(gpu: str | None, gpus: int | None) -> Machine:
    """Return the named accelerators, or by default those of this machine."""
    if gpu is None and torch.cuda.is_available():
        return of_device(torch.cuda.get_device_name(), gpus or torch.cuda.device_count())
    return Machine(gpu or "cpu", gpus or 1, usable_cores())


def of_device(name: str, gpus: int) -> Machine:
    """Return a machine with GPUs that torch calls `name`; GPUs that are not known count as H100s."""
    known = detect(name)
    gpu = next((key for key, each in KNOWN.items() if each == known), None)
    return Machine(gpu or "h100", gpus, usable_cores(), "" if gpu else one_line(name))
