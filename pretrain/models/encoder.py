"""The encoder: any timm model that maps an image to one vector."""

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
    """Settings of the encoder."""

    name: str = "vit_small_patch16_224"
    """Name of a timm model, see `timm.list_models()`."""
    kwargs: dict[str, Any] = {}
    """More arguments of `timm.create_model`, e.g. {patch_size: 8, reg_tokens: 4, global_pool: avg}."""
    attention: Literal["softmax", "winding"] = "softmax"
    """winding: each block of a plain ViT learns an angle for every token, and tokens attend only to tokens of
    the same class, i.e. in the same bin of angles. That leaves as little as 1/winding_classes of attention's
    products."""
    winding_classes: PositiveInt = 8
    """Number of classes of winding attention."""
    weights: Path | None = None
    """Start from these weights instead of random ones: a .safetensors file with timm's names, or the folder
    of a run, a checkpoint or a timm model. Position embeddings, patch size and channels are fitted to the new
    encoder, a classifier is left out, and everything else must match."""


def timm_kwargs(config: EncoderConfig, image_size: int, channels: int) -> dict[str, Any]:
    """Return all arguments with which `create(name, kwargs)` rebuilds this encoder.

    Models that have an image size get the size of the global views, and accept other sizes for local views.
    Raises `UserError` for an unknown name and for arguments that the model does not take.
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
    """Return the argument for winding attention, or nothing where it is not asked for.

    An encoder that cannot have it raises `UserError`.
    """
    if config.attention == "softmax":
        return {}
    if reason := unfit(encoder):
        raise UserError(
            f"encoder.attention=winding: {reason}, whose attention could be replaced; use a ViT such as "
            "vit_small_patch16_224, or encoder.attention=softmax"
        )
    return {"winding_classes": config.winding_classes}


def create(name: str, kwargs: dict[str, Any]) -> Any:
    """Call `timm.create_model`; if `winding_classes` is among the arguments, make its attention winding."""
    of_timm = {key: x for key, x in kwargs.items() if key != "winding_classes"}
    encoder = timm.create_model(name, **of_timm)
    if "winding_classes" in kwargs:
        wind(encoder, kwargs["winding_classes"])
    return encoder


def build_encoder(name: str, kwargs: dict[str, Any], seed: int) -> nn.Module:
    """Build the encoder, images (N, C, H, W) to (N, D), with weights drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(name, kwargs)


def embedding_width(encoder: nn.Module, name: str, channels: int, sizes: Iterable[int]) -> int:
    """Return D of the vector that `encoder`, on the meta device, gives for an image.

    Nothing is computed. An output that is not (N, D), and an encoder that does not take square images of all
    `sizes`, raise `UserError`.
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
    """Return the side in pixels that divides every image size: a ViT's patch size, otherwise 1."""
    size = getattr(getattr(encoder, "patch_embed", None), "patch_size", 1)
    return int(size[0] if isinstance(size, (tuple, list)) else size)


class ViewEncoder(nn.Module):
    """Encodes views of several sizes in one call, as DDP and FSDP require."""

    def __init__(self, encoder: nn.Module, packed: bool = False) -> None:
        """Wrap `encoder` in place; with `packed`, all sizes pass through it as one sequence of tokens."""
        super().__init__()
        self.encoder = encoder
        self.drop_paths = key_drop_paths(encoder)
        synchronize(encoder)
        if packed:
            pack(encoder)

    def forward(self, views: list[Tensor], keys: Tensor) -> Tensor:
        """Return float32 embeddings (V, N, D) of views given as one (v, N, C, H, W) for each size; V = Σ v.

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
