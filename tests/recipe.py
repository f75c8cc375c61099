"""The recipe of a run that takes seconds."""

from pathlib import Path

import yaml


def write_recipe(shards: Path, folder: Path) -> Path:
    """recipe.yaml in `folder`: 12 steps on packed images, each logged, saved every 4."""
    values = {
        "name": "tiny",
        "runs": str(folder / "runs"),
        "steps": 12,
        "log_every": 1,
        "data": {"path": str(shards), "batch_size": 8, "workers": 0, "channels": 1},
        "views": {"global_size": 32, "local_views": 2, "local_size": 16},
        "encoder": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
        },
        "objective": {
            "kind": "lejepa",
            "sigreg": {"num_slices": 64},
            "projector": {"hidden": 32, "width": 8},
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 3},
        "engine": {"precision": "fp32"},
        "checkpoint": {"every": 4},
        "tracking": {"enabled": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
