"""Write a checkpoint's encoder for timm or transformers, for `isotorus export`.

timm           timm.create_model("local-dir:DEST", pretrained=True)
transformers   AutoModel.from_pretrained("DEST").pooler_output, if the encoder computes what a Dinov2 does

The entry "isotorus" in config.json says which output is the encoder's vector of an image, and where the
weights come from.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from isotorus.errors import UserError, from_os_error
from isotorus.files import as_new, sync
from pretrain.checkpoint.dinov2 import dinov2_config, dinov2_state
from pretrain.checkpoint.warm_start import find_weights, load_exactly
from pretrain.models.description import DESCRIPTION, EncoderDescription, describe
from pretrain.models.encoder import create

Format = Literal["timm", "transformers"]


def export(given: Path, dest: Path, format: Format = "timm") -> None:
    """Write the folder `dest`, whole or not at all.

    Raises UserError if `dest` exists or the encoder cannot be expressed in the format.
    """
    weights = find_weights(given, str(given))
    folder = Path(weights.file).parent
    if not (folder / DESCRIPTION).is_file():
        raise UserError(f"{folder} has no encoder.json, so it is no checkpoint of a run; name one that is")
    described = describe(folder / DESCRIPTION)
    if "winding_classes" in described.kwargs:
        raise UserError(
            f"{folder} has winding attention, which neither timm nor transformers computes; evaluate the "
            "checkpoint as it is, or export one trained with encoder.attention=softmax"
        )
    # Drop-path only acts in training.
    kwargs = {key: value for key, value in described.kwargs.items() if key != "drop_path_rate"}
    with torch.device("meta"):
        encoder: Any = create(described.name, kwargs)
    state = load_exactly(weights.file, encoder, described.name)
    origin = {
        "vector": _vector(encoder, format),
        "embedding_width": described.embedding_width,
        "encoder_sha256": weights.sha256,
        "step": described.step,
        "data_fingerprint": described.data_fingerprint,
    }
    if format == "timm":
        files = {"config.json": timm_config(encoder, described, kwargs) | {"isotorus": origin}}
    else:
        config = dinov2_config(encoder, described.image_size)
        state = dinov2_state(state, config, encoder.no_embed_class)
        files = {
            "config.json": config | {"isotorus": origin},
            "preprocessor_config.json": _preprocessor(described),
        }
    _publish(dest, files, state)


def timm_config(encoder: Any, described: EncoderDescription, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a timm model folder."""
    size = described.image_size
    return {
        "architecture": described.name,
        "num_classes": kwargs["num_classes"],
        "num_features": described.embedding_width,
        "global_pool": _pool(encoder),
        "model_args": kwargs,
        "pretrained_cfg": {
            "input_size": [described.channels, size, size],
            "fixed_input_size": not kwargs.get("dynamic_img_size", "img_size" not in kwargs),
            "mean": described.mean,
            "std": described.std,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "num_classes": kwargs["num_classes"],
            "first_conv": encoder.pretrained_cfg["first_conv"],
            "classifier": encoder.pretrained_cfg["classifier"],
        },
    }


def _preprocessor(described: EncoderDescription) -> dict[str, Any]:
    """Return the preprocessor that prepares images as our evaluation does.

    It takes the largest centred square, resizes it, and normalises with the run's mean and std.
    """
    size = described.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": described.mean,
        "image_std": described.std,
        "do_convert_rgb": described.channels == 3,
    }


def _vector(encoder: nn.Module, format: Format) -> str:
    """Say which of the model's outputs is the encoder's vector of an image."""
    if format == "transformers":
        return "pooler_output: the class token after the last layer norm (global_pool=token)"
    return f"the model's output (N, D), pooled with global_pool={_pool(encoder)}"


def _pool(encoder: nn.Module) -> str | None:
    """Return how a timm model pools its feature map or tokens into one vector: avg, token, map, …"""
    owners = (getattr(encoder, "head", None), encoder)
    pools = [getattr(owner, name, None) for owner in owners for name in ("global_pool", "pool_type")]
    kinds = [getattr(pool, "pool_type", pool) for pool in pools]
    return next((kind for kind in kinds if isinstance(kind, str)), None)


def _publish(dest: Path, files: dict[str, dict[str, Any]], state: dict[str, Tensor]) -> None:
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise UserError(f"{dest} exists already; name a folder that does not, or remove it")
    partial = dest.with_name(f".{dest.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        save_file(
            {name: x.contiguous() for name, x in state.items()},
            partial / "model.safetensors",
            {"format": "pt"},
        )
        as_new(partial / "model.safetensors")
        for name, content in files.items():
            (partial / name).write_text(json.dumps(content, indent=2) + "\n")
        for path in (*partial.iterdir(), partial):
            sync(path)
        partial.replace(dest)
    except OSError as error:
        raise from_os_error(error, f"exporting to {dest}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
