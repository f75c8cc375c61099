"""Convert a timm ViT into transformers' Dinov2Model or Dinov2WithRegistersModel, where they compute the same.

Both are the ViT of Dosovitskiy et al. 2021 with pre-norm and exact GELU or SwiGLU; only the names of tensors
differ. The names written are those of the published Dinov2 checkpoints, which every transformers reads.
"""

import itertools
import math
from typing import Any

import torch
from timm.layers import GluMlp, Mlp, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from isotorus.errors import UserError

# Modules of a block in timm, and their names in transformers.
RENAMED = {
    "norm1": "norm1",
    "attn.proj": "attention.output.dense",
    "ls1": "layer_scale1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls2": "layer_scale2",
}
RENAMED_SWIGLU = RENAMED | {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}


def dinov2_config(encoder: nn.Module, image_size: int) -> dict[str, Any]:
    """Return the config.json of the transformers model that computes the same as `encoder`.

    Raises UserError, naming the first difference, if no such model exists. `encoder` may be on the meta
    device.
    """
    if type(encoder) is not VisionTransformer:
        raise _refusal(f"it is a {type(encoder).__name__} and Dinov2 a VisionTransformer")
    if encoder.global_pool != "token":
        raise _refusal(
            f"its vector is pooled from the patches (global_pool={encoder.global_pool}), Dinov2's is the "
            "normalised class token"
        )
    first: Any = encoder.blocks[0]
    swiglu = isinstance(first.mlp, GluMlp)
    if swiglu and first.mlp.gate_last:
        raise _refusal("its SwiGLU gates with the second half of its input, Dinov2's with the first")
    reference = _reference(encoder, image_size, swiglu)
    for ours, theirs in itertools.zip_longest(str(encoder).splitlines(), str(reference).splitlines()):
        if ours != theirs:
            raise _refusal(f"it has {str(ours).strip()} where Dinov2 has {str(theirs).strip()}")
    if ours := encoder.state_dict().keys() ^ reference.state_dict().keys():
        raise _refusal(f"only one of them has {sorted(ours)[0]}")
    registers = encoder.num_reg_tokens
    return {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": first.attn.num_heads,
        "mlp_ratio": _mlp_ratio(encoder.embed_dim, first.mlp.fc2.in_features, swiglu),
        "use_swiglu_ffn": swiglu,
        "hidden_act": "gelu",
        "layer_norm_eps": encoder.norm.eps,
        "qkv_bias": True,
        "layerscale_value": 1.0,
        "image_size": image_size,
        "patch_size": encoder.patch_embed.patch_size[0],
        "num_channels": encoder.patch_embed.proj.in_channels,
        "torch_dtype": "float32",
        **({"num_register_tokens": registers} if registers else {}),
    }


def dinov2_state(state: dict[str, Tensor], config: dict[str, Any], no_embed_class: bool) -> dict[str, Tensor]:
    """Return timm's state dict under the names of the transformers model that `config` describes."""
    registers = config.get("num_register_tokens", 0)
    positions, prefix = state["pos_embed"], state["cls_token"]
    if registers:
        prefix = torch.cat([prefix, state["reg_token"]], dim=1)
    if no_embed_class:  # positions for patches alone
        positions = torch.cat([torch.zeros_like(prefix), positions], dim=1)
    # transformers adds positions to the class token but not to registers, so add them to the tokens here.
    prefix = prefix + positions[:, : registers + 1]
    patches = positions[:, registers + 1 :]
    result = {
        "embeddings.cls_token": prefix[:, :1],
        "embeddings.mask_token": torch.zeros_like(prefix[:, 0]),
        "embeddings.position_embeddings": torch.cat([torch.zeros_like(prefix[:, :1]), patches], dim=1),
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if registers:
        result["embeddings.register_tokens"] = prefix[:, 1:]
    for kind in ("weight", "bias"):
        result[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
    for i in range(config["num_hidden_layers"]):  # no layer scale is the same as a layer scale of ones
        for scale in ("layer_scale1", "layer_scale2"):
            result[f"encoder.layer.{i}.{scale}.lambda1"] = torch.ones_like(state["norm.weight"])
    renamed = RENAMED_SWIGLU if config["use_swiglu_ffn"] else RENAMED
    for name, x in state.items():
        if not name.startswith("blocks."):
            continue
        layer, _, inner = name.removeprefix("blocks.").partition(".")
        module, _, kind = inner.rpartition(".")
        theirs = f"encoder.layer.{layer}"
        if module == "attn.qkv":
            for part, rows in zip(("query", "key", "value"), x.chunk(3), strict=True):
                result[f"{theirs}.attention.attention.{part}.{kind}"] = rows
        else:
            result[f"{theirs}.{renamed[module]}.{'lambda1' if kind == 'gamma' else kind}"] = x
    return {name: x.clone() for name, x in result.items()}


def _reference(encoder: VisionTransformer, image_size: int, swiglu: bool) -> VisionTransformer:
    """Build a Dinov2 of this encoder's sizes as a timm model."""
    first: Any = encoder.blocks[0]
    proj: Any = encoder.patch_embed.proj
    mlp: Any = SwiGLUPacked if swiglu else Mlp
    with torch.device("meta"):
        return VisionTransformer(
            img_size=image_size,
            patch_size=encoder.patch_embed.patch_size[0],
            in_chans=proj.in_channels,
            num_classes=0,
            embed_dim=encoder.embed_dim,
            depth=len(encoder.blocks),
            num_heads=first.attn.num_heads,
            mlp_ratio=first.mlp.fc1.out_features / encoder.embed_dim,
            init_values=None if isinstance(first.ls1, nn.Identity) else 1.0,
            reg_tokens=encoder.num_reg_tokens,
            mlp_layer=mlp,
            act_layer=nn.SiLU if swiglu else nn.GELU,
        )


def _mlp_ratio(width: int, hidden: int, swiglu: bool) -> int:
    """Return the whole mlp_ratio that gives this hidden width in transformers; UserError without one."""
    for ratio in range(1, math.ceil(2 * hidden / width) + 1):
        # Its SwiGLU keeps two thirds of width · ratio, rounded up to a multiple of 8.
        gives = (int(width * ratio * 2 / 3) + 7) // 8 * 8 if swiglu else width * ratio
        if gives == hidden:
            return ratio
    raise _refusal(f"its MLP is {hidden} wide, which no whole mlp_ratio gives for a width of {width}")


def _refusal(difference: str) -> UserError:
    return UserError(f"this encoder is no Dinov2: {difference}; use --format timm")
