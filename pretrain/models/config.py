"""The section `encoder` of a recipe, and the settings of MLPs."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from isotorus.paths import LocalPath
from isotorus.section import Section

Norm = Literal["batch", "layer"]
FeatureSet = Literal["embedding", "patch_mean", "last2", "last4", "stages"]
"""Names of what an encoder can return, see `pretrain.models.feature_sets`."""


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
    weights: LocalPath | None = None
    """Start from these weights instead of random ones: a .safetensors file with timm's names, or the folder
    of a run, a checkpoint or a timm model. Position embeddings, patch size and channels are fitted to the new
    encoder, a classifier is left out, and everything else must match."""
    pixels: Literal["data", "weights"] = "data"
    """Mean and standard deviation by which pixels are normalised. data: those of the data set; weights: those
    that the encoder of `weights` was trained with, by the description beside them."""
    freeze: NonNegativeInt = 0
    """Number of blocks that never change, counted from the input, with what comes before them, such as the
    patch embedding; 0: everything is trained."""
    lora: NonNegativeInt = 0
    """Rank of low-rank adapters (LoRA) on the linear layers of the blocks: the adapters are trained, and the
    encoder's own weights stay as they are; 8 is usual. Needs `pip install isotorus[lora]`. The encoder's
    files in checkpoints have the adapters added to the weights. 0: none, the encoder itself is trained."""


class AverageConfig(Section):
    """Settings of averaged weights."""

    momentum: float | None = Field(None, ge=0, lt=1)
    """Momentum m of an exponential moving average of encoder and projector that is kept beside them and never
    trains: after update n it moves by 1 − min(m, (1 + n)/(10 + n)) towards the weights. 0.999 is usual.
    Checkpoints have it in encoder_average.safetensors. Default: there is none."""


class MLPConfig(Section):
    """Settings of an MLP."""

    hidden: PositiveInt = 2048
    """Width of the hidden layers."""
    layers: int = Field(3, ge=1, le=1000)
    """Number of linear layers; 1 is a linear map."""


class ProjectorConfig(MLPConfig):
    """Settings of the projector."""

    width: PositiveInt = 64
    """Width K of the projection; in the published ablation 16 to 128 do better than 1024."""
