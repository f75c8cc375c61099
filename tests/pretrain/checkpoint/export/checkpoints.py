"""Small checkpoints with weights that differ from any initialisation, and images for them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pretrain.models.config import EncoderConfig
from pretrain.models.encoder import build_encoder, create, embedding_width, timm_kwargs

SMALL = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def save_checkpoint(
    folder: Path, name: str, kwargs: dict, channels: int = 3, **options: object
) -> torch.nn.Module:
    """Write a checkpoint folder as a run does, with weights that differ from any initialisation."""
    kwargs = timm_kwargs(EncoderConfig(name=name, kwargs=kwargs, **options), 56, channels)
    encoder = build_encoder(name, kwargs, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    folder.mkdir(parents=True)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    with torch.device("meta"):
        width = embedding_width(create(name, kwargs), name, channels, [56])
    description = {
        "format": 1,
        "name": name,
        "kwargs": kwargs,
        "embedding_width": width,
        "image_size": 56,
        "channels": channels,
        "mean": [0.4] * channels,
        "std": [0.2] * channels,
        "seed": 1,
        "step": 7,
        "data_fingerprint": "f00d",
    }
    (folder / "encoder.json").write_text(json.dumps(description))
    return encoder.eval()


def images(size: int = 56, channels: int = 3) -> torch.Tensor:
    return torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(3))
