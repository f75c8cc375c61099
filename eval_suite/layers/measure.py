"""All chosen quantities of every block of one checkpoint."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eval_suite.geometry import dimension, normality, rank
from eval_suite.layers import cost, hessian, maps, rings, units, weights
from eval_suite.layers.blocks import Block, Observed, inputs_of, observe
from eval_suite.layers.images import random_angles, turned
from isotorus.errors import UserError
from isotorus.randomness import generator
from pretrain.geometry.hyperbolic import gromov_delta
from pretrain.geometry.jets import transport
from pretrain.objectives.lejepa import lejepa_loss
from pretrain.objectives.sigreg import SIGReg

Row = list[float | None]
"""A value a block; None where the notion does not apply, or nothing could be measured."""


@dataclass(frozen=True)
class Subject:
    """An encoder, and what it is shown."""

    encoder: nn.Module
    blocks: list[Block]
    images: Tensor
    """Normalised (n, C, S, S)."""
    labels: NDArray[np.float64] | None
    """Radians (n,), nan where unknown; None: the images are turned, and the turn is the label."""
    views: Callable[[], Tensor]
    """Two augmented views (V, N, C, S, S) of some images."""
    few: int
    batch: int
    seed: int
    device: torch.device

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        for part in images.split(self.batch):
            yield part.to(self.device)


@dataclass(frozen=True)
class Trace:
    """What the next checkpoint of a run is compared with."""

    positive: list[NDArray[np.bool_] | None]
    weights: list[dict[str, Tensor]]


def measure(subject: Subject, chosen: tuple[str, ...], before: Trace | None) -> tuple[dict[str, Row], Trace]:
    """A row of values by the name of the quantity, and what the next checkpoint needs."""
    blocks = subject.blocks
    observed = observe(subject.encoder, blocks, subject.batches(subject.images))
    trace = Trace([x.positive for x in observed], [weights.matrices(b.module) for b in blocks])
    found: dict[str, Row] = {}
    for name in chosen:
        if name in _OF_FEATURES:
            found[name] = [_attempt(_OF_FEATURES[name], x, subject.seed) for x in observed]
    if {"separability", "mixture"} & set(chosen):
        planes = [rings.most_ring_like(x.vectors) for x in observed]
        found |= {
            name: [_plain(getattr(p, name)) for p in planes] for name in rings.Ring._fields if name in chosen
        }
    if "angle" in chosen:
        found["angle"] = _angles(subject, observed)
    if "drift" in chosen:
        found["drift"] = [None] * len(blocks) if before is None else _drift(before, trace)
    if "rotation" in chosen:
        found["rotation"] = [
            weights.rotation(old, new) if old else None
            for old, new in zip(before.weights if before else [{}] * len(blocks), trace.weights, strict=True)
        ]
    if "heavy_tail" in chosen:
        found["heavy_tail"] = [_plain(weights.heavy_tail(block.module)) for block in blocks]
    found |= _of_maps(subject, chosen)
    if "curvature" in chosen:
        found["curvature"] = _curvature(subject)
    return found, trace


def _of_maps(subject: Subject, chosen: tuple[str, ...]) -> dict[str, Row]:
    wanted = [name for name in ("contraction", "stability", "holonomy") if name in chosen]
    if not wanted:
        return {}
    images = subject.images[: subject.few].to(subject.device)
    inputs = inputs_of(subject.encoder, subject.blocks, images)
    found: dict[str, Row] = {name: [] for name in wanted}
    for block, x in zip(subject.blocks, inputs, strict=True):
        if "contraction" in wanted:
            norm = maps.spectral_norm(block.module, x, iterations=cost.POWER_ITERATIONS, seed=subject.seed)
            found["contraction"].append(float(norm.mean()))
        if "stability" in wanted:
            response = maps.stability(block.module, x, draws=cost.NOISE_DRAWS, seed=subject.seed)
            found["stability"].append(float(response.mean()))
        if "holonomy" in wanted:
            found["holonomy"].append(_holonomy(subject, block, x))
    return found


def _holonomy(subject: Subject, block: Block, x: Tensor) -> float | None:
    """Mean defect of triangles of patch tokens; None where there are no tokens, or too few."""
    prefix = int(getattr(subject.encoder, "num_prefix_tokens", 0))
    if x.ndim != 3 or x.shape[1] - prefix < 3:
        return None
    defects = []
    for number, tokens in enumerate(x[: cost.HOLONOMY_IMAGES]):
        random = generator(subject.seed, number)
        for _ in range(cost.TRIANGLES):
            loop = prefix + random.permutation(len(tokens) - prefix)[:3]
            defects.append(float(transport.holonomy(block.module, tokens, loop.tolist()).defect))
    whole = [defect for defect in defects if np.isfinite(defect)]  # nan where nothing comes around
    return float(np.mean(whole)) if whole else None


def holonomy_maps(subject: Subject) -> list[list[list[float | None]]]:
    """Of some images the mean defect of triangles around patches, at the last block: (rows, columns) each.

    Values stand at places that are evenly spread; empty where the block sees no square of patches.
    """
    block = subject.blocks[-1]
    images = subject.images[: cost.HOLONOMY_IMAGES].to(subject.device)
    (x,) = inputs_of(subject.encoder, [block], images)
    prefix = int(getattr(subject.encoder, "num_prefix_tokens", 0))
    side = round((x.shape[1] - prefix) ** 0.5) if x.ndim == 3 else 0
    if side < 2 or side**2 != x.shape[1] - prefix:
        return []
    along = np.unique(np.linspace(0, side - 1, min(side, round(cost.MAPPED_PLACES**0.5))).round().astype(int))
    places = [(int(row), int(column)) for row in along for column in along]
    maps_of = [transport.holonomy_map(block.module, tokens, (side, side), places) for tokens in x]
    return [[[_plain(float(v)) for v in row] for row in defects[along][:, along]] for defects in maps_of]


def _angles(subject: Subject, observed: list[Observed]) -> Row:
    """How well the periodic label, or without one the turn of the images, is read off each block."""
    if subject.labels is not None:
        known = np.isfinite(subject.labels)
        return [
            rings.angle_error(x.vectors[known], subject.labels[known], seed=subject.seed) for x in observed
        ]
    angles = random_angles(len(subject.images), subject.seed)
    seen = observe(subject.encoder, subject.blocks, subject.batches(turned(subject.images, angles)))
    return [rings.angle_error(x.vectors, angles.double().numpy(), seed=subject.seed) for x in seen]


def _drift(before: Trace, trace: Trace) -> Row:
    return [
        None if old is None or new is None else units.drift(old, new)
        for old, new in zip(before.positive, trace.positive, strict=True)
    ]


def _curvature(subject: Subject) -> Row:
    views = subject.views().to(subject.device)
    sigreg = SIGReg(num_slices=256, seed=subject.seed)

    def loss() -> Tensor:
        z = subject.encoder(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return lejepa_loss(z, len(z), 0.05, sigreg, step=0)["loss"]

    found: Row = []
    for block in subject.blocks:
        own = [p for p in block.module.parameters() if p.requires_grad]
        ends = hessian.curvatures(loss, own, iterations=cost.LANCZOS_ITERATIONS, seed=subject.seed)
        found.append(_plain(ends.smallest))
    return found


def _attempt(of: Callable[[Observed, int], float | None], x: Observed, seed: int) -> float | None:
    """A collapsed block leaves some quantities without a value; that is no reason to end."""
    try:
        value = of(x, seed)
    except (UserError, ValueError, ArithmeticError, np.linalg.LinAlgError):
        return None
    return None if value is None else _plain(value)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


_OF_FEATURES: dict[str, Callable[[Observed, int], float | None]] = {
    "dimension": lambda x, _: dimension.two_nn(x.vectors),
    "rank": lambda x, _: rank.effective_rank(x.vectors),
    "sigreg": lambda x, seed: normality.summary(x.vectors, seed=seed)["isotropy"],
    "hyperbolicity": lambda x, seed: gromov_delta(x.vectors, subsamples=10, seed=seed).relative,
    "residual": lambda x, _: x.residual,
    "dormant": lambda x, _: None if x.magnitude is None else units.dormant(x.magnitude),
    "patterns": lambda x, seed: None if x.positive is None else units.patterns(x.positive, seed=seed),
}
