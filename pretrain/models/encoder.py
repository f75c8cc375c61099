"""The encoder: any timm model that gives one vector an image."""

import difflib
from typing import Any

import timm
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from data_pipeline.errors import UserError
from pretrain.models.batch_norm import synchronize
from pretrain.models.drop_path import key_drop_paths


class EncoderConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    name: str = "vit_small_patch16_224"
    """A timm model name, see `timm.list_models()`."""
    kwargs: dict[str, Any] = {}
    """Further arguments of `timm.create_model`, e.g. {patch_size: 8, depth: 6, global_pool: avg}."""


def timm_kwargs(config: EncoderConfig, image_size: int, channels: int) -> dict[str, Any]:
    """All arguments that rebuild this encoder with `timm.create_model(name, **kwargs)`.

    Models that know an image size get the global views' and take other sizes too (local views).
    Raises UserError for an unknown name or an argument that the model does not take.
    """
    if not timm.is_model(config.name):
        near = difflib.get_close_matches(config.name, timm.list_models(), 1)
        hint = f"did you mean {near[0]}?" if near else "see timm.list_models()"
        raise UserError(f"encoder.name: timm has no model '{config.name}'; {hint}")
    common = {"in_chans": channels, "num_classes": 0, **config.kwargs}
    sized = {"img_size": image_size, "dynamic_img_size": True, **common}
    failure = ""
    for kwargs in (sized, common):
        try:
            with torch.device("meta"):
                timm.create_model(config.name, **kwargs)
        except (TypeError, RuntimeError, ValueError, AssertionError) as error:
            failure = failure or str(error).splitlines()[0]
        else:
            return kwargs
    raise UserError(
        f"encoder: timm cannot build {config.name} with {sized}: {failure}; change encoder.kwargs"
    )


def build_encoder(name: str, kwargs: dict[str, Any], seed: int) -> nn.Module:
    """A timm model with weights drawn from `seed` alone; maps images (N, C, H, W) to (N, D)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(name, **kwargs)


def patch_size(encoder: nn.Module) -> int:
    """The side in pixels that image sizes must be a multiple of: the patch of a ViT, else 1."""
    size = getattr(getattr(encoder, "patch_embed", None), "patch_size", 1)
    return int(size[0] if isinstance(size, (tuple, list)) else size)


class ViewEncoder(nn.Module):
    """The encoder over views of several sizes, in one forward pass as DDP and FSDP want it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.drop_paths = key_drop_paths(encoder)
        synchronize(encoder)

    def forward(self, views: list[Tensor], keys: Tensor) -> Tensor:
        """Views, one (v, N, C, H, W) for each size, to float32 embeddings (V, N, D), V = Σ v.

        `keys`, int64 (V, N), decide what drop-path drops.
        """
        embeddings, first = [], 0
        for x in views:
            for module in self.drop_paths:
                module.keys = keys[first : first + len(x)].flatten()
            embeddings.append(self.encoder(x.flatten(0, 1)).float().unflatten(0, x.shape[:2]))
            first += len(x)
        return torch.cat(embeddings)
