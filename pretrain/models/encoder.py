"""The encoder: any timm model that gives one vector an image."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from isotorus.errors import UserError
from isotorus.names import nearest
from isotorus.section import Section
from pretrain.models.batch_norm import synchronize
from pretrain.models.drop_path import draw_masks, key_drop_paths
from pretrain.models.packed import PackedViT, pack, unfit
from pretrain.models.winding_attention import wind


class EncoderConfig(Section):
    name: str = "vit_small_patch16_224"
    """A timm model name, see `timm.list_models()`."""
    kwargs: dict[str, Any] = {}
    """Further arguments of `timm.create_model`, e.g. {patch_size: 8, reg_tokens: 4, global_pool: avg}."""
    attention: Literal["softmax", "winding"] = "softmax"
    """winding: in a plain ViT, tokens attend to those of their own class, which each block reads off an angle
    that it learns. Attention then takes a share of its products, down to 1/winding_classes."""
    winding_classes: PositiveInt = 8
    """Classes of winding attention."""
    weights: Path | None = None
    """Start from these weights instead of random ones: a .safetensors file of timm's names, or a run,
    checkpoint or timm model folder. Position embeddings, patch size and channels are fitted, a classifier is
    left out, and all else must match."""


def timm_kwargs(config: EncoderConfig, image_size: int, channels: int) -> dict[str, Any]:
    """All arguments that rebuild this encoder with `create(name, kwargs)`.

    Models that know an image size get the global views' and take other sizes too (local views).
    Raises UserError for an unknown name or an argument that the model does not take.
    """
    if not timm.is_model(config.name):
        near = nearest(config.name, timm.list_models())
        hint = f"did you mean {near}?" if near else "see timm.list_models()"
        raise UserError(f"encoder.name: timm has no model '{config.name}'; {hint}")
    if "in_chans" in config.kwargs:
        raise UserError(
            "encoder.kwargs.in_chans: the images decide how many channels there are; set data.channels"
        )
    common = {"in_chans": channels, "num_classes": 0, **config.kwargs}
    fixed = {"img_size": image_size, **common}
    sized = {"dynamic_img_size": True, **fixed}
    failure = ""
    for kwargs in (sized, fixed, common):
        try:
            with torch.device("meta"):
                encoder = timm.create_model(config.name, **kwargs)
        except (TypeError, RuntimeError, ValueError, AssertionError) as error:
            failure = failure or str(error).splitlines()[0]
        else:
            return kwargs | _winding(config, encoder)
    raise UserError(
        f"encoder: timm cannot build {config.name} with {sized}: {failure}; change encoder.kwargs"
    )


def _winding(config: EncoderConfig, encoder: nn.Module) -> dict[str, Any]:
    if config.attention == "softmax":
        return {}
    if reason := unfit(encoder):
        raise UserError(
            f"encoder.attention=winding: {reason}, whose attention could be replaced; use a ViT such as "
            "vit_small_patch16_224, or encoder.attention=softmax"
        )
    return {"winding_classes": config.winding_classes}


def create(name: str, kwargs: dict[str, Any]) -> Any:
    """`timm.create_model` with these arguments; `winding_classes` among them makes its attention winding."""
    given = {key: x for key, x in kwargs.items() if key != "winding_classes"}
    encoder = timm.create_model(name, **given)
    if "winding_classes" in kwargs:
        wind(encoder, kwargs["winding_classes"])
    return encoder


def build_encoder(name: str, kwargs: dict[str, Any], seed: int) -> nn.Module:
    """`create`, with weights drawn from `seed` alone; maps images (N, C, H, W) to (N, D)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(name, kwargs)


def embedding_width(encoder: nn.Module, name: str, channels: int, sizes: Iterable[int]) -> int:
    """D of the one vector that `encoder`, on the meta device, gives an image; nothing is computed.

    Raises UserError if it gives something else than (N, D), or does not take square images of all `sizes`.
    """
    encoder, width, first = encoder.eval(), 0, 0
    for size in sizes:
        try:
            with torch.no_grad():
                out = encoder(torch.empty(2, channels, size, size, device="meta"))
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            remedy = f"set views.local_size={first}, or " if first else ""
            raise UserError(
                f"encoder.name={name} does not take images of {size}² ({reason}); {remedy}"
                "use an encoder that takes any size, such as a ViT, ConvNeXt or ResNet"
            ) from None
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if not isinstance(out, Tensor) or out.ndim != 2 or not out.shape[1]:
            raise UserError(
                f"encoder.name={name} gives {shape} for 2 images, one vector an image is needed, (2, D); "
                "set encoder.kwargs.global_pool=avg (or token), or use another encoder"
            )
        width, first = out.shape[1], first or size
    return width


def patch_size(encoder: nn.Module) -> int:
    """The side in pixels that image sizes must be a multiple of: the patch of a ViT, else 1."""
    size = getattr(getattr(encoder, "patch_embed", None), "patch_size", 1)
    return int(size[0] if isinstance(size, (tuple, list)) else size)


class ViewEncoder(nn.Module):
    """The encoder over views of several sizes, in one forward pass as DDP and FSDP want it."""

    def __init__(self, encoder: nn.Module, packed: bool = False) -> None:
        """With `packed` the encoder, which must be fit for that, sees all sizes as one sequence of tokens."""
        super().__init__()
        self.encoder = encoder
        self.drop_paths = key_drop_paths(encoder)
        synchronize(encoder)
        if packed:
            pack(encoder)

    def forward(self, views: list[Tensor], keys: Tensor) -> Tensor:
        """Views, one (v, N, C, H, W) for each size, to float32 embeddings (V, N, D), V = Σ v.

        `keys`, int64 (V, N), decide what drop-path drops.
        """
        sizes = [x.flatten(0, 1) for x in views]
        keys_of_sizes = keys.flatten().split([len(x) for x in sizes])
        if isinstance(self.encoder, PackedViT):
            repeats = [self.encoder.tokens(*x.shape[-2:]) for x in sizes]
            keys_of_tokens = [key.repeat_interleave(t) for key, t in zip(keys_of_sizes, repeats, strict=True)]
            draw_masks(self.drop_paths, torch.cat(keys_of_tokens)[None])
            embeddings = self.encoder(sizes)
        else:
            embeddings = []
            for x, key in zip(sizes, keys_of_sizes, strict=True):
                draw_masks(self.drop_paths, key)
                embeddings.append(self.encoder(x))
        return torch.cat([x.float() for x in embeddings]).unflatten(0, keys.shape)
