"""LeJEPA by stable-pretraining: `PEER/bin/python -m studies.geometry.peer FOLDER OUT [FIELD=VALUE …]`.

The encoder, images, views, strengths of augmentation, batch, steps and optimizer are those of base.yaml, and
loss, SIGReg, transforms, loader and training loop those of that library. It needs an environment of its own:

    python3 -m venv PEER && PEER/bin/python -m pip install -c constraints.txt stable-pretraining

FOLDER is that of `studies.geometry.study`. Fields are those of `Settings`; give LeJEPA's chosen point. OUT
becomes a timm model folder, which `isotorus eval OUT --train …` scores as it scores our own encoders.
"""

import csv
import json
import resource
import sys
import types
from pathlib import Path
from typing import Any, NamedTuple

import lightning as pl
import numpy as np
import stable_pretraining as spt
import timm
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from stable_pretraining.data import transforms
from stable_pretraining.methods.lejepa import LeJEPA
from timm.models import save_for_hf
from torch import nn
from torch.utils.data import DataLoader, Dataset

BASE = Path(__file__).resolve().parent / "base.yaml"
MIN_SCALE = 0.3
"""Smallest share of the image that a view shows, as in our default views.global_scale."""


class Settings(NamedTuple):
    """What differs between runs."""

    lr: float = 1e-3
    """Peak learning rate."""
    weight: float = 0.02
    """Our λ in (1 − λ)·prediction + λ·SIGReg; theirs is in prediction + λ·SIGReg, so it is λ / (1 − λ)."""
    seed: int = 0
    steps: int = 1000


class Photographs(Dataset[dict[str, Any]]):
    """Images in memory, (n, height, width, 3)."""

    def __init__(self, pixels: NDArray[np.uint8], transform: Any) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.transform({"image": Image.fromarray(self.pixels[index])})


def main() -> None:
    """Train, and write the encoder."""
    folder, out, *given = sys.argv[1:]
    kinds = Settings.__annotations__
    fields = dict(each.split("=") for each in given)
    settings = Settings(**{name: kinds[name](float(x)) for name, x in fields.items()})
    base = yaml.safe_load(BASE.read_text())
    pl.seed_everything(settings.seed, workers=True)
    pixels = _training_images(Path(folder) / "cifar")
    mean, std = (of(pixels / np.float32(255), axis=(0, 1, 2)).tolist() for of in (np.mean, np.std))
    size = base["views"]["global_size"]
    loader = DataLoader(
        Photographs(pixels, _views(size, mean, std)),
        base["data"]["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=base["data"]["workers"],
        persistent_workers=True,
    )
    module = _module(base, settings)
    trainer = pl.Trainer(
        max_steps=settings.steps, accelerator="cpu", devices=1, precision="bf16-mixed", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=out,
    )  # fmt: skip
    trainer.gradient_clip_val_ = 1.0  # where their manager puts it; Lightning refuses it for their module
    before = _cpu_seconds()
    trainer.fit(module, loader)
    used = _cpu_seconds() - before
    encoder = module.backbone
    encoder.pretrained_cfg |= {"mean": mean, "std": std, "input_size": [3, size, size]}
    save_for_hf(encoder, out, model_args=base["encoder"]["kwargs"], safe_serialization=True)
    about = settings._asdict() | {"cpu_seconds": round(used, 1), "stable_pretraining": spt.__version__}
    (Path(out) / "settings.json").write_text(json.dumps(about) + "\n")
    print(f"{out} has the encoder: {about}")


def _training_images(folder: Path) -> NDArray[np.uint8]:
    """Return the images of the set train."""
    with (folder / "sets.csv").open(newline="") as file:
        names = [row["image"] for row in csv.DictReader(file) if row["set"] == "train"]
    return np.stack([np.asarray(Image.open(folder / "images" / name).convert("RGB")) for name in names])


def _views(size: int, mean: list[float], std: list[float]) -> Any:
    """Return two views by their transforms, with our strengths and, as in base.yaml, without blur."""
    view = transforms.Compose(
        transforms.RandomResizedCrop((size, size), scale=(MIN_SCALE, 1.0)),
        transforms.RandomHorizontalFlip(0.5),
        transforms.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        transforms.RandomGrayscale(0.2),
        transforms.ToImage(mean=mean, std=std),
    )
    return transforms.MultiViewTransform([view, view])


def _module(base: dict[str, Any], settings: Settings) -> LeJEPA:
    """Return their LeJEPA with our encoder and the widths of our projector, and their optimizer settings."""
    encoder = timm.create_model(base["encoder"]["name"], num_classes=0, **base["encoder"]["kwargs"])
    hidden, width = 512, 64
    projector = nn.Sequential(
        nn.Linear(encoder.num_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(),
        nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width),
    )  # fmt: skip
    share = settings.weight / (1 - settings.weight)
    # Their constructor takes names of ViTs alone; any other encoder has to replace the one that it makes.
    module = LeJEPA("vit_tiny_patch16_224", projector=projector, n_slices=256, lamb=share)
    module.backbone, module.embed_dim = encoder, encoder.num_features
    module.forward = types.MethodType(_step, module)
    module.optim = {
        "optimizer": {"type": "AdamW", "lr": settings.lr, "weight_decay": 0.05},
        "scheduler": {
            "type": "LinearWarmupCosineAnnealing",
            "total_steps": settings.steps,
            "peak_step": base["optimizer"]["warmup_steps"] / base["steps"],
        },
        "interval": "step",
    }
    return module


def _step(module: LeJEPA, batch: dict[str, Any], stage: str) -> dict[str, torch.Tensor]:
    """Return their loss of two views; their own forward pass fails where there are no local views."""
    views = [view["image"] for view in batch["views"]]
    projected = module.projector(module.backbone(torch.cat(views)))
    projected = projected.float().view(len(views), len(views[0]), -1)
    loss, prediction, sigreg = module._compute_loss(projected, len(views), module.sigreg, module.lamb)
    return {"loss": loss, "prediction": prediction.detach(), "sigreg": sigreg.detach()}


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


if __name__ == "__main__":
    main()
