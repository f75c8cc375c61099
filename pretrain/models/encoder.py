"""The encoder: any timm model that maps an image to one vector."""

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import timm
import torch
from timm.layers import Mlp, PatchEmbed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from isotorus.errors import UserError
from isotorus.nearest_name import nearest
from pretrain.models import timm_arguments
from pretrain.models.batch_norm import synchronize
from pretrain.models.channel_embedding import EMBEDDING, embed_channels
from pretrain.models.config import EncoderConfig
from pretrain.models.drop_path import draw_masks, key_drop_paths
from pretrain.models.feature_sets import FEATURES, MAP, give
from pretrain.models.several_sizes import PackedViT, pack, unfit
from pretrain.models.winding_attention import wind


def timm_kwargs(
    config: EncoderConfig, image_size: int, channels: int, *, named: bool = False
) -> dict[str, Any]:
    """Return all arguments with which `create(name, kwargs)` rebuilds this encoder.

    Models that have an image size get the size of the global views, and accept other sizes for local views.
    With `named` channels, the encoder takes images that lack some of them.
    Raises `UserError` for an unknown name and for arguments that the model does not take.
    """
    for key in ("in_chans", EMBEDDING):
        if key in config.kwargs:
            raise UserError(
                f"encoder.kwargs.{key}: the images decide which channels there are; set data.channels"
            )
    if FEATURES in config.kwargs:
        raise UserError(
            f"encoder.kwargs.{FEATURES}: an encoder is trained by its embedding; for fine-tuning, set "
            "objective.features"
        )
    common = {"in_chans": channels, "num_classes": 0, **config.kwargs} | ({EMBEDDING: True} if named else {})
    fixed = {"img_size": image_size, **common}
    for kwargs in ({"dynamic_img_size": True, **fixed}, fixed):
        with suppress(UserError):
            encoder = create_on_meta(config.name, kwargs)
            break
    else:  # an error now lies in what the user gave
        kwargs, encoder = common, create_on_meta(config.name, common)
    return kwargs | _winding(config, encoder)


def create_on_meta(name: str, kwargs: dict[str, Any]) -> Any:
    """Build an encoder without memory, on torch's meta device, as `create` does."""
    with torch.device("meta"), _Unfilled():
        return create(name, kwargs)


class _Unfilled(TorchFunctionMode):
    """Leaves out operations that only give a new tensor its values, which take most of the time to build."""

    FILLING = frozenset({"erfinv_", "clamp_", "uniform_", "normal_", "mul_", "add_", "fill_", "zero_"})

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        filled = args[0] if args else kwargs.get("tensor")  # torch.nn.init passes it by name
        if (
            getattr(function, "__name__", "") in self.FILLING
            and isinstance(filled, Tensor)
            and filled.is_meta
        ):
            return filled
        return function(*args, **kwargs)


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
    """Call `timm.create_model`, and change the model by the arguments that timm does not know.

    `winding_classes` makes its attention winding, `channel_embedding` lets images lack some channels, and
    `feature_set` makes it return another feature set than its embedding.
    Name and arguments may be a stranger's, so `pretrain.models.timm_arguments` refuses those by which timm
    would open a file or an address. Raises `UserError`, in one line, for these and for whatever timm cannot
    build.
    """
    timm_arguments.check_name(name)
    if not timm.is_model(name):
        near = nearest(name, timm.list_models())
        hint = f"did you mean {near}?" if near else "see timm.list_models()"
        raise UserError(f"encoder.name: timm {timm.__version__} has no model '{name}'; {hint}")
    timm_arguments.check_arguments(kwargs)
    ours = ("winding_classes", EMBEDDING, FEATURES, *timm_arguments.READS_ELSEWHERE)
    of_timm = {key: x for key, x in kwargs.items() if key not in ours}
    try:
        encoder = timm.create_model(name, **of_timm)
    except Exception as error:
        said = str(error)
        ran_out = isinstance(error, RuntimeError) and re.search("allocate|(out of|enough) memory", said)
        if isinstance(error, MemoryError) or ran_out:
            raise
        raise UserError(
            f"timm cannot build {name} with {of_timm} ({_reason(error)}); change encoder.kwargs"
        ) from None
    _turn_off_fixed_dropout(encoder)
    if "winding_classes" in kwargs:
        wind(encoder, kwargs["winding_classes"])
    if kwargs.get(EMBEDDING):
        embed_channels(encoder)
    if (features := kwargs.get(FEATURES, "embedding")) != "embedding":
        give(encoder, features)
    return encoder


def _turn_off_fixed_dropout(encoder: nn.Module) -> None:
    """Turn off the dropout in networks that compute relative positions, which timm sets to 1/8 itself.

    No argument reaches it, and no step could be repeated with it.
    """
    for name, module in encoder.named_modules():
        if name.endswith("meta_mlp") or (name.endswith("rel_pos.mlp") and isinstance(module, Mlp)):
            module.drop1.p = 0.0


def build_encoder(name: str, kwargs: dict[str, Any], seed: int) -> nn.Module:
    """Build the encoder, images (N, C, H, W) to (N, D) or a map (N, h, w, D); `seed` draws its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(name, kwargs)


def embedding_width(encoder: nn.Module, name: str, channels: int, sizes: Iterable[int]) -> int:
    """Return D of the vector, or of the map, that `encoder`, on the meta device, gives for an image.

    Nothing is computed. An output that is not (N, D), or (N, h, w, D) for a map, and an encoder that does not
    take square images of all `sizes`, raise `UserError`.
    """
    encoder, width, first = encoder.eval(), 0, 0
    is_map = getattr(encoder, FEATURES, "") == MAP
    for size in sizes:
        try:
            with torch.no_grad():
                out = encoder(torch.empty(2, channels, size, size, device="meta"))
        except Exception as error:
            if is_map:
                raise _no_map(name, f"does not give it for images of {size}² ({_reason(error)})") from None
            remedy = f"set views.local_size={first} and whole_size to the same, or " if first else ""
            raise UserError(
                f"encoder.name={name} does not take images of {size}² ({_reason(error)}); {remedy}"
                "use an encoder that takes any size, such as a ViT, ConvNeXt or ResNet"
            ) from None
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if not isinstance(out, Tensor) or out.ndim != (4 if is_map else 2) or not out.shape[-1]:
            if is_map:
                raise _no_map(name, f"gives {shape} for 2 images")
            raise UserError(
                f"encoder.name={name} gives {shape} for 2 images, one vector an image is needed, (2, D); "
                "set encoder.kwargs.global_pool=avg (or token), or use another encoder"
            )
        width, first = out.shape[-1], first or size
    return width


def _no_map(name: str, what: str) -> UserError:
    """Return the error for an encoder that gives no map (N, h, w, D), which masks are predicted from."""
    return UserError(
        f"masks are predicted from a vector for each cell of an image, and encoder.name={name} {what}; use "
        "an encoder such as a ViT, ConvNeXt or ResNet"
    )


def patch_size(encoder: nn.Module) -> int:
    """Return the side in pixels that divides every image size: a ViT's patch size, otherwise 1.

    Patches that overlap, as PVT's do, or that are padded fit into images of any size.
    """
    embed = getattr(encoder, "patch_embed", None)
    return embed.patch_size[0] if isinstance(embed, PatchEmbed) and not embed.dynamic_img_pad else 1


def _reason(error: Exception) -> str:
    """Return the kind and the first line of an error of timm."""
    said = " ".join(str(error).split("\n", 1)[0].split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class ViewEncoder(nn.Module):
    """Encodes views of several sizes in one call, as DDP and FSDP require."""

    def __init__(self, encoder: nn.Module, packed: bool = False) -> None:
        """Wrap `encoder` in place; with `packed`, all sizes pass through it as one sequence of tokens."""
        super().__init__()
        self.encoder = encoder
        self.drop_paths = key_drop_paths(encoder)
        self.convolutional = sum(isinstance(m, nn.Conv2d) for m in encoder.modules()) > 1
        synchronize(encoder)
        if packed:
            pack(encoder)

    def forward(self, views: list[Tensor], keys: Tensor) -> Tensor:
        """Return float32 embeddings (V, N, D) of views given as one (v, N, C, H, W) for each size; V = Σ v.

        `keys`, int64 (V, N), decide what drop-path drops.
        """
        sizes = [x.flatten(0, 1) for x in views]
        if self.convolutional and sizes[0].device.type == "cpu":
            # In this memory layout a ResNet's step takes about two thirds of the time. Only a copy has it: an
            # image of one channel is said to have both layouts, and `contiguous` leaves it as it is.
            sizes = [x.clone(memory_format=torch.channels_last) for x in sizes]
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
        # Not a view of the sequence: FSDP hooks what a module returns, and warns of views.
        return torch.cat([x.float().unflatten(0, (-1, keys.shape[1])) for x in embeddings])
