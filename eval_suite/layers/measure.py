"""Measure the chosen quantities of every block of one checkpoint."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval_suite.geometry import centring, dimension, normality, rank
from eval_suite.layers import bending, derivatives, quantities, rings, units, weights
from eval_suite.layers.blocks import Block, Call, Observed, calls_of, observe
from eval_suite.layers.images import turned
from isotorus.errors import UserError
from isotorus.randomness import generator
from pretrain.geometry.hyperbolic import gromov_delta
from pretrain.geometry.jets import transport
from pretrain.objectives.lejepa import lejepa_loss
from pretrain.objectives.sigreg import SIGReg

Row = list[float | None]
"""One value for each block; None if the quantity is not defined for it or could not be measured."""


@dataclass(frozen=True)
class Subject:
    """An encoder and the images that it is measured on."""

    encoder: nn.Module
    blocks: list[Block]
    images: Tensor
    """Normalised images (n, C, S, S)."""
    labels: NDArray[np.float64] | None
    """Periodic labels (n,) in radians, nan where unknown; if None, the labels are rotations of the images."""
    mean: tuple[float, ...]
    """Mean of each channel that the images are normalised by, with pixels in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel, likewise."""
    views: Callable[[], Tensor]
    """Returns augmented views (V, N, C, S, S) of some images, for the curvature of the loss."""
    few: int
    """Number of images for quantities that need derivatives."""
    batch: int
    """Number of images in a forward pass."""
    seed: int
    """Seed of all random choices."""
    device: torch.device

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """Yield `images` in batches, on the encoder's device."""
        for part in images.split(self.batch):
            yield part.to(self.device)


@dataclass(frozen=True)
class Trace:
    """The parts of a checkpoint that the run's next checkpoint is compared with, by block."""

    positive: list[NDArray[np.bool_] | None]
    """Signs (n, units) of the activations; None for a block without a nonlinearity."""
    weights: list[dict[str, Tensor]]
    """Weight matrices by name."""


def measure(subject: Subject, chosen: tuple[str, ...], before: Trace | None) -> tuple[dict[str, Row], Trace]:
    """Measure the `chosen` quantities; return a row of values by name, and the trace of this checkpoint.

    `before` is the trace of the run's previous checkpoint; None for the first one.
    """
    blocks = subject.blocks
    observed = observe(subject.encoder, blocks, subject.batches(subject.images))
    trace = Trace([x.positive for x in observed], [weights.matrices(b.module) for b in blocks])
    values: dict[str, Row] = {}
    for name in chosen:
        if name in _OF_FEATURES:
            values[name] = [_attempt(_OF_FEATURES[name], x, subject.seed) for x in observed]
    if {"separability", "mixture"} & set(chosen):
        planes = [rings.most_ring_like(x.vectors) for x in observed]
        for name in rings.Ring._fields:
            if name in chosen:
                values[name] = [_finite(getattr(plane, name)) for plane in planes]
    if "angle" in chosen:
        values["angle"] = _angles(subject, observed)
    if "drift" in chosen:
        values["drift"] = [None] * len(blocks) if before is None else _drift(before, trace)
    if "rotation" in chosen:
        values["rotation"] = [
            weights.rotation(old, new) if old else None
            for old, new in zip(before.weights if before else [{}] * len(blocks), trace.weights, strict=True)
        ]
    if "heavy_tail" in chosen:
        values["heavy_tail"] = [_finite(weights.heavy_tail(block.module)) for block in blocks]
    values |= _of_maps(subject, chosen)
    if "bending" in chosen:
        bent = bends_of(subject, subject.encoder, blocks)
        values["bending"] = [bending.mean_angle(bent, i) for i in range(len(blocks))]
    if "curvature" in chosen:
        values["curvature"] = _curvature(subject)
    return values, trace


def bends_of(subject: Subject, encoder: nn.Module, blocks: list[Block]) -> bending.Bends:
    """Follow the subject's images along the paths of augmentations through an encoder of its kind."""
    return bending.bends(encoder, blocks, subject.images, subject.mean, subject.std, subject.batches)


def _of_maps(subject: Subject, chosen: tuple[str, ...]) -> dict[str, Row]:
    """Measure contraction, stability and holonomy, which apply each block again, on the first few images."""
    wanted = [name for name in ("contraction", "stability", "holonomy") if name in chosen]
    if not wanted:
        return {}
    seed = subject.seed
    images = subject.images[: subject.few].to(subject.device)
    calls = calls_of(subject.encoder, subject.blocks, images)
    of_one: dict[str, Callable[[Call], float | None]] = {
        "contraction": lambda f: float(
            derivatives.spectral_norm(f, f.x, iterations=quantities.POWER_ITERATIONS, seed=seed).mean()
        ),
        "stability": lambda f: float(
            derivatives.stability(f, f.x, draws=quantities.NOISE_DRAWS, seed=seed).mean()
        ),
        "holonomy": lambda f: _holonomy(subject, f),
    }
    return {name: [_defined(of_one[name], call) for call in calls] for name in wanted}


def _defined(measure_one: Callable[[Call], float | None], call: Call) -> float | None:
    """Measure a block as a map; None where torch has no derivative of one of its operations."""
    try:
        value = measure_one(call)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, UserError):
        return None
    return None if value is None else _finite(value)


def _holonomy(subject: Subject, block: Call) -> float | None:
    """Return the mean defect ‖H − I‖/√d of random triangles of patch tokens; None for fewer than 3 tokens.

    The result is None for feature maps too, and if no defect is finite.
    """
    prefix = int(getattr(subject.encoder, "num_prefix_tokens", 0))
    x = block.x
    if x.ndim != 3 or x.shape[1] - prefix < 3:
        return None
    defects = []
    for number, tokens in enumerate(x[: quantities.HOLONOMY_IMAGES]):
        random = generator(subject.seed, number)
        for _ in range(quantities.TRIANGLES):
            loop = prefix + random.permutation(len(tokens) - prefix)[:3]
            defects.append(float(transport.holonomy(block, tokens, loop.tolist()).defect))
    finite = [defect for defect in defects if np.isfinite(defect)]  # nan if the carried vector vanishes
    return float(np.mean(finite)) if finite else None


def holonomy_maps(subject: Subject) -> list[list[list[float | None]]]:
    """Return a map (rows, columns) for each of a few images: the holonomy around patches, at the last block.

    A value is the mean defect of the triangles around one patch; the patches are evenly spread over the
    image. There are no maps if the block's tokens are not a square of patches.
    """
    images = subject.images[: quantities.HOLONOMY_IMAGES].to(subject.device)
    (block,) = calls_of(subject.encoder, subject.blocks[-1:], images)
    x = block.x
    prefix = int(getattr(subject.encoder, "num_prefix_tokens", 0))
    side = round((x.shape[1] - prefix) ** 0.5) if x.ndim == 3 else 0
    if side < 2 or side**2 != x.shape[1] - prefix:
        return []
    along = np.unique(
        np.linspace(0, side - 1, min(side, round(quantities.MAPPED_PLACES**0.5))).round().astype(int)
    )
    places = [(int(row), int(column)) for row in along for column in along]
    maps = [transport.holonomy_map(block, tokens, (side, side), places) for tokens in x]
    return [[[_finite(float(v)) for v in row] for row in defects[along][:, along]] for defects in maps]


def _angles(subject: Subject, observed: list[Observed]) -> Row:
    """Return the mean error in degrees of the periodic label, predicted from the features of each block.

    Without labels, the images are rotated by random angles, which are the labels.
    """
    if subject.labels is not None:
        known = np.isfinite(subject.labels)
        return [
            rings.angle_error(x.vectors[known], subject.labels[known], seed=subject.seed) for x in observed
        ]
    angles = generator(subject.seed, 7).uniform(0, 2 * np.pi, len(subject.images)).astype(np.float32)
    rotated = turned(subject.images, torch.from_numpy(angles))
    seen = observe(subject.encoder, subject.blocks, subject.batches(rotated))
    return [rings.angle_error(x.vectors, angles.astype(np.float64), seed=subject.seed) for x in seen]


def _drift(before: Trace, trace: Trace) -> Row:
    """Return the share of signs that changed between two checkpoints, for each block."""
    return [
        None if old is None or new is None else units.drift(old, new)
        for old, new in zip(before.positive, trace.positive, strict=True)
    ]


def _curvature(subject: Subject) -> Row:
    """Return upper bounds of the smallest Hessian eigenvalue of LeJEPA's loss in each block's weights.

    The loss weighs SIGReg by 0.05 and is taken on the embeddings of `subject.views`.
    """
    views = subject.views().to(subject.device)
    sigreg = SIGReg(num_slices=256, seed=subject.seed, implementation="eager")

    def loss() -> Tensor:
        z = subject.encoder(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return lejepa_loss(z, len(z), 0.05, sigreg, step=0)["loss"]

    values: Row = []
    for block in subject.blocks:
        own = [p for p in block.module.parameters() if p.requires_grad]
        ends = derivatives.curvatures(loss, own, iterations=quantities.LANCZOS_ITERATIONS, seed=subject.seed)
        values.append(_finite(ends.smallest))
    return values


def _attempt(measure_one: Callable[[Observed, int], float | None], x: Observed, seed: int) -> float | None:
    """Measure one quantity of one block; None if it has no value, as for a collapsed block."""
    try:
        value = measure_one(x, seed)
    except (UserError, ValueError, ArithmeticError, np.linalg.LinAlgError):
        return None
    return None if value is None else _finite(value)


def _finite(value: float) -> float | None:
    """Return the value as a float, or None if it is nan or infinite."""
    return float(value) if np.isfinite(value) else None


_OF_FEATURES: dict[str, Callable[[Observed, int], float | None]] = {
    "dimension": lambda x, _: dimension.two_nn(x.vectors),
    "rank": lambda x, _: rank.effective_rank(x.vectors),
    "sigreg": lambda x, seed: normality.summary(x.vectors, seed=seed)["isotropy"],
    "hyperbolicity": lambda x, seed: (
        gromov_delta(centring.centred(x.vectors), subsamples=10, seed=seed).relative
    ),
    "residual": lambda x, _: x.residual,
    "dormant": lambda x, _: None if x.magnitude is None else units.dormant(x.magnitude),
    "patterns": lambda x, seed: None if x.positive is None else units.patterns(x.positive, seed=seed),
}
"""Quantities that need only what was observed of a block, and a seed."""
