"""`python -m studies.torus.sketch IMAGES.pt NAME [field=value …]`: one trial of a recipe, without the loader.

The images are held as tensors and the views are made in torch, so that a trial of four minutes trains for
four minutes. The losses are the product's. The rate follows a cosine over CPU time, so trials are compared at
equal cost. A trial appends its setting and its figures on val to trials.jsonl beside this file.

IMAGES.pt is a dictionary of `train` and `val`, each with uint8 images (N, 3, 32, 32) and labels.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from data_pipeline.transforms.hue import turn_hue
from pretrain.geometry.flat_torus import wrap
from pretrain.objectives.lejepa import lejepa_loss
from pretrain.objectives.sigreg import SIGReg
from pretrain.objectives.toroidal import angles_from_pairs, torus_prediction, torus_uniformity
from pretrain.objectives.torus_frequencies import all_frequencies, balanced_s

TABLE = Path(__file__).parent / "trials.jsonl"
FULL = 2 * math.pi


@dataclass
class Setting:
    budget: float = 240.0
    """CPU seconds of training."""
    seed: int = 0
    batch: int = 48
    turned: int = 2
    """Turned views of an image; 0: LeJEPA alone."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Share of the image that a turned view shows."""
    same_crop: bool = False
    """Whether the turned views of an image show the same part of it."""
    flip: str = "shared"
    """shared: the turned views of an image are mirrored alike; own: each by itself; none: never."""
    jitter: float = 0.0
    """Strength of the jitter of brightness and contrast of turned views."""
    encoder: str = "convnext_atto"
    arguments: dict[str, Any] = field(
        default_factory=lambda: {
            "patch_size": 2,
            "dims": [40, 80, 160, 320],
            "depths": [2, 2, 2, 2],
            "kernel_sizes": 3,
        }
    )
    lr: float = 2e-3
    norm: str = "layer"
    """Norm in the angle head: layer or batch."""
    pose_width: int | None = None
    """Numbers of the embedding that the angles read, with content; by default all."""
    angle_weight: float = 1.0
    uniformity: float = 0.05
    content: float = 0.0
    """Weight of LeJEPA on two more views that are not turned."""


class Trial:
    def __init__(self, setting: Setting, images: Tensor) -> None:
        self.setting, self.images = setting, images
        self.rng = torch.Generator().manual_seed(setting.seed)
        torch.manual_seed(setting.seed)
        self.encoder = timm.create_model(setting.encoder, num_classes=0, **setting.arguments)
        width = self.encoder.num_features
        self.pose = setting.pose_width or width
        norm = nn.LayerNorm(512) if setting.norm == "layer" else nn.BatchNorm1d(512)
        self.head = nn.Sequential(nn.Linear(self.pose, 512), norm, nn.GELU(), nn.Linear(512, 4))
        rest = width - (setting.pose_width or 0)
        hidden = [nn.Linear(rest, 512), nn.BatchNorm1d(512), nn.GELU()]
        hidden += [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.GELU()]
        self.projector = nn.Sequential(*hidden, nn.Linear(512, 64)) if setting.content else nn.Identity()
        self.network = nn.ModuleList([self.encoder, self.head, self.projector])
        self.sigreg = SIGReg(256, seed=0)
        self.frequencies, self.weights = all_frequencies(2, 3, balanced_s(2))

    def train(self) -> int:
        """Train for the budget; return the number of steps."""
        setting, step = self.setting, 0
        parameters = list(self.network.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=setting.lr)
        start = time.process_time()
        for images in self._batches():
            done = (time.process_time() - start) / setting.budget
            if done >= 1:
                break
            warm = 0.06
            cosine = 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm))) + 1e-3
            for group in optimizer.param_groups:
                group["lr"] = setting.lr * (done / warm if done < warm else cosine)
            optimizer.zero_grad()
            self._loss(images, step).backward()
            optimizer.step()
            step += 1
        return step

    def angles(self, images: Tensor, turns: Tensor) -> Tensor:
        """Return the angles (N, 2) of whole images (N, 3, 32, 32) in [0, 1], turned by `turns` (N, 2)."""
        views = shown(images, turns)
        embeddings = torch.cat([self.encoder(part)[:, : self.pose] for part in views.split(256)])
        return angles_from_pairs(self.head(embeddings).unflatten(-1, (2, 2)))

    def _batches(self) -> Iterator[Tensor]:
        while True:
            for part in torch.randperm(len(self.images), generator=self.rng).split(self.setting.batch):
                if len(part) == self.setting.batch:
                    yield self.images[part].float() / 255

    def _loss(self, images: Tensor, step: int) -> Tensor:
        setting, n = self.setting, len(images)
        loss = torch.zeros(())
        if setting.turned:
            turns = FULL * torch.rand(setting.turned, n, 2, generator=self.rng)
            embeddings = self.encoder(torch.cat(list(self._turned_views(images, turns))))
            pairs = self.head(embeddings[:, : self.pose]).view(setting.turned, n, 2, 2)
            angles = angles_from_pairs(pairs)
            uniformity = torch.stack([torus_uniformity(x, self.frequencies, self.weights) for x in angles])
            torus = (1 - setting.uniformity) * torus_prediction(angles - turns, setting.turned)
            loss = loss + setting.angle_weight * (torus + setting.uniformity * uniformity.mean())
        if setting.content:
            embeddings = self.encoder(torch.cat([self._content_view(images) for _ in range(2)]))
            projections = self.projector(embeddings[:, setting.pose_width or 0 :]).view(2, n, -1)
            loss = loss + setting.content * lejepa_loss(projections, 2, 0.05, self.sigreg, step)["loss"]
        return loss

    def _turned_views(self, images: Tensor, turns: Tensor) -> Iterator[Tensor]:
        setting, n = self.setting, len(images)
        crop, flip = self._crop(n, setting.scale), self._uniform(n) < 0.5
        for turn in turns:
            if not setting.same_crop:
                crop = self._crop(n, setting.scale)
            if setting.flip == "own":
                flip = self._uniform(n) < 0.5
            mirrored = flip if setting.flip != "none" else torch.zeros(n, dtype=torch.bool)
            yield shown(images, turn, crop, mirrored, lambda x: self._jitter(x, setting.jitter))

    def _content_view(self, x: Tensor) -> Tensor:
        n = len(x)
        x = resampled(x, torch.zeros(n), self._crop(n, (0.3, 1.0)), self._uniform(n) < 0.5)
        on = (self._uniform(n) < 0.8).float()
        x = self._jitter(x, 0.4, on).clamp(0, 1)
        x = turn_hue(x, on * self._uniform(n, -0.1, 0.1) * FULL).clamp(0, 1)
        grey = x.mean(1, keepdim=True).expand_as(x)
        return normalised(torch.where((self._uniform(n) < 0.2)[:, None, None, None], grey, x))

    def _jitter(self, x: Tensor, strength: float, on: Tensor | float = 1.0) -> Tensor:
        brightness, contrast = (
            (1 + on * self._uniform(len(x), -strength, strength))[:, None, None, None] for _ in range(2)
        )
        x = x * brightness
        mean = x.mean((1, 2, 3), keepdim=True)
        return mean + (x - mean) * contrast

    def _crop(self, n: int, scale: tuple[float, float]) -> Tensor:
        """Draw the area and the place of n square crops, the latter in [-1, 1] of the room that is left."""
        return torch.stack([self._uniform(n, *scale), self._uniform(n, -1, 1), self._uniform(n, -1, 1)])

    def _uniform(self, n: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=self.rng)


def shown(
    images: Tensor,
    turns: Tensor,
    crop: Tensor | None = None,
    mirrored: Tensor | None = None,
    before_hue: Any = lambda x: x,
) -> Tensor:
    """Return crops of images, rotated and turned in hue by `turns` (N, 2), inside a disc, normalised."""
    n, side = len(images), images.shape[-1]
    crop = torch.tensor([[1.0], [0.0], [0.0]]).expand(3, n) if crop is None else crop
    mirrored = torch.zeros(n, dtype=torch.bool) if mirrored is None else mirrored
    x = before_hue(resampled(images, turns[:, 0], crop, mirrored))
    place = (torch.arange(side) + 0.5) * 2 / side - 1
    radius = (place[:, None] ** 2 + place**2).sqrt()
    return normalised(turn_hue(x, turns[:, 1])) * ((1 - radius) * side / 2 + 0.5).clamp(0, 1)


def resampled(images: Tensor, angle: Tensor, crop: Tensor, mirrored: Tensor) -> Tensor:
    """Return crops of images, mirrored and then rotated by `angle` (N,), by bilinear interpolation."""
    area, right, down = crop
    side, sign = area.sqrt(), torch.where(mirrored, -1.0, 1.0)
    cos, sin = side * angle.cos(), side * angle.sin()
    rows = [sign * cos, sign * sin, right * (1 - side), -sin, cos, down * (1 - side)]
    grid = F.affine_grid(torch.stack(rows, -1).view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def normalised(x: Tensor) -> Tensor:
    return (x - 0.5) / 0.25


@torch.no_grad()
def figures(
    trial: Trial, images: Tensor, winding_images: int = 250, error_images: int = 1000
) -> dict[str, Any]:
    """Return shares of right windings and errors in degrees (median, 90 %) on images (N, 3, 32, 32)."""
    trial.network.eval()
    found: dict[str, Any] = {}
    right, steps = torch.ones(winding_images, dtype=torch.bool), 12
    for j, action in enumerate(("rotation", "hue")):
        turns = torch.zeros(winding_images, steps, 2)
        turns[..., j] = torch.arange(steps) * FULL / steps
        path = trial.angles(images[:winding_images].repeat_interleave(steps, 0), turns.flatten(0, 1))
        path = path.view(winding_images, steps, 2)
        winding = (wrap(path.roll(-1, 1) - path).sum(1) / FULL).round()
        ok = (winding == torch.eye(2)[j]).all(1)
        found[f"right_{action}"] = ok.float().mean().item()
        right &= ok
    found["right"] = right.float().mean().item()
    rng = torch.Generator().manual_seed(5)
    a, b = FULL * torch.rand(2, error_images, 2, generator=rng)
    images = images[:error_images]
    error = wrap(trial.angles(images, a) - trial.angles(images, b) - (a - b)).abs().rad2deg()
    for j, action in enumerate(("rotation", "hue")):
        found[f"error_{action}"] = [round(error[:, j].quantile(q).item(), 2) for q in (0.5, 0.9)]
    return found


@torch.no_grad()
def neighbours(trial: Trial, data: dict[str, tuple[Tensor, Tensor]]) -> float:
    """Return the accuracy of 20 weighted nearest neighbours in the content, of 10,000 training images."""

    def embedded(images: Tensor) -> Tensor:
        parts = [trial.encoder(normalised(part.float() / 255)) for part in images.split(500)]
        return F.normalize(torch.cat(parts)[:, trial.setting.pose_width or 0 :], dim=1)

    trial.network.eval()
    (train, labels), (val, expected) = (data[name] for name in ("train", "val"))
    similarity, near = (embedded(val) @ embedded(train[:10_000]).T).topk(20)
    votes = torch.zeros(len(val), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[:10_000][near], (similarity / 0.07).exp())
    return (votes.argmax(1) == expected).float().mean().item()


def main() -> None:
    data = torch.load(sys.argv[1])
    setting = Setting(**{key: yaml.safe_load(x) for key, x in (a.split("=", 1) for a in sys.argv[3:])})
    torch.set_num_threads(1)
    trial = Trial(setting, data["train"][0])
    row = {"name": sys.argv[2], "setting": asdict(setting), "steps": trial.train()}
    if setting.turned:
        row |= figures(trial, data["val"][0].float() / 255)
    if setting.content:
        row["knn"] = neighbours(trial, data)
    with TABLE.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


if __name__ == "__main__":
    main()
