"""A checkpoint whose encoder is a ViT without blocks: one linear map of the image, and its layer norm."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.eval_suite.eval_samples import write_description

SIZE = 32


def kwargs(width: int) -> dict[str, Any]:
    """Return timm's arguments of a ViT of `width` channels whose one patch is the image, without blocks."""
    return {
        "img_size": SIZE,
        "patch_size": SIZE,
        "in_chans": 3,
        "num_classes": 0,
        "depth": 0,
        "embed_dim": width,
        "num_heads": 1,
        "class_token": False,
        "global_pool": "avg",
    }


def save_linear(
    folder: Path,
    maps: list[Tensor],
    projector: Tensor,
    bias: Tensor,
    *,
    negatives: float = 1.0,
    step: int = 7,
    **described: Any,
) -> Path:
    """Save an encoder of k linear maps (3, SIZE, SIZE) of the image, and a projector of two numbers an angle.

    The encoder's 2k numbers are the maps, and the maps with a minus. So their mean is 0, and the layer norm
    only scales, which keeps directions; after it the second half is multiplied by `negatives`. `projector`
    (2 angles, 2k) and `bias` (2 angles,) are the projector's layer; `described` are more keys of
    encoder.json.
    """
    folder.mkdir(parents=True)
    positive, k = torch.stack(maps), len(maps)
    encoder = {
        "pos_embed": torch.zeros(1, 1, 2 * k),
        "patch_embed.proj.weight": torch.cat([positive, -positive]).float(),
        "patch_embed.proj.bias": torch.zeros(2 * k),
        "fc_norm.weight": torch.cat([torch.ones(k), negatives * torch.ones(k)]),
        "fc_norm.bias": torch.zeros(2 * k),
    }
    save_file(encoder, folder / "encoder.safetensors")
    save_file({"0.weight": projector, "0.bias": bias}, folder / "projector.safetensors")
    head = {"hidden": 1, "layers": 1, "width": len(bias), "angles": len(bias) // 2}
    write_description(folder, kwargs(2 * k), step=step, config={"name": "known"}, projector=head, **described)
    return folder
