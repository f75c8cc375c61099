"""Write a model folder of timm, which transformers and the Hugging Face hub read too."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from isotorus.files import as_new
from pretrain.checkpoint.export.classifier import with_classifier
from pretrain.checkpoint.export.trained import Trained


def write(trained: Trained, folder: Path) -> None:
    """Write config.json and model.safetensors, with the classifier of a run that was trained with labels."""
    if described := trained.described.supervised:
        kwargs, state = with_classifier(trained)
        origin = trained.origin("the model's output (N, D) with num_classes=0")
        labels = {"label_names": described.names, "isotorus": origin | {"task": described.task}}
        write_weights(state, folder)
        write_json(config(trained, kwargs["num_classes"]) | labels, folder / "config.json")
        return
    origin = trained.origin(f"the model's output (N, D), pooled with global_pool={pool(trained.on_meta)}")
    write_weights(trained.state, folder)
    write_json(config(trained) | {"isotorus": origin}, folder / "config.json")


def config(trained: Trained, classes: int | None = None) -> dict[str, Any]:
    """Return the config.json of a timm model folder, without the entry "isotorus".

    `classes` is the number of outputs of its classifier, where it has one of ours.
    """
    described, kwargs, encoder = trained.described, trained.kwargs, trained.on_meta
    size = described.image_size
    count = kwargs["num_classes"] if classes is None else classes
    return {
        "architecture": described.name,
        "num_classes": count,
        "num_features": described.embedding_width,
        "global_pool": pool(encoder),
        # transformers gives num_classes itself, and refuses it here.
        "model_args": {key: value for key, value in kwargs.items() if key != "num_classes"},
        "pretrained_cfg": {
            "input_size": [described.channels, size, size],
            "fixed_input_size": not kwargs.get("dynamic_img_size", "img_size" not in kwargs),
            "mean": described.mean,
            "std": described.std,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": count,
            "first_conv": encoder.pretrained_cfg["first_conv"],
            "classifier": encoder.pretrained_cfg["classifier"],
        },
    }


def pool(encoder: nn.Module) -> str | None:
    """Return how a timm model pools its feature map or tokens into one vector: avg, token, map, …"""
    owners = (getattr(encoder, "head", None), encoder)
    pools = [getattr(owner, name, None) for owner in owners for name in ("global_pool", "pool_type")]
    kinds = [getattr(pool, "pool_type", pool) for pool in pools]
    return next((kind for kind in kinds if isinstance(kind, str)), None)


def write_weights(state: dict[str, Tensor], folder: Path) -> None:
    """Write model.safetensors, with the permissions of other new files."""
    file = folder / "model.safetensors"
    save_file({name: x.contiguous() for name, x in state.items()}, file, {"format": "pt"})
    as_new(file)


def write_json(content: dict[str, Any], file: Path) -> None:
    """Write a file of JSON."""
    file.write_text(json.dumps(content, indent=2) + "\n")
