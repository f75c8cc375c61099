"""Check the encoder, the views and the engine against each other, without data and without memory."""

from typing import Any, NamedTuple

from data_pipeline.transforms.action_checks import refuse_rotations, refuse_unfit
from isotorus.errors import UserError
from pretrain.config import Config
from pretrain.engines.check import check_engine
from pretrain.methods.config import SupervisedConfig
from pretrain.models.batch_norm import has_batch_norm
from pretrain.models.encoder import create_on_meta, embedding_width, patch_size, timm_kwargs
from pretrain.models.feature_sets import FEATURES
from pretrain.models.frozen import check_frozen
from pretrain.models.lora import check_adapters
from pretrain.models.repeated import with_few_blocks
from pretrain.preflight.rehearsal import rehearse
from pretrain.supervised.masks import check_views_of_masks
from pretrain.supervised.mixing import check_mixing


class Model(NamedTuple):
    """The encoder to be trained, without memory."""

    kwargs: dict[str, Any]
    """Arguments of `pretrain.models.encoder.create`."""
    encoder: Any
    """The timm model, on the meta device."""
    width: int
    """The embedding's dimension D."""


def check_share(config: Config, world_size: int) -> None:
    """Raise `UserError` for a batch of fewer images than there are ranks, or micro-batches on them."""
    images = config.data.batch_size // world_size
    if images == 0:
        raise UserError(
            f"data.batch_size={config.data.batch_size} is less than an image for each of {world_size} ranks; "
            f"use fewer ranks, or a larger batch"
        )
    if config.engine.accumulation > images:
        raise UserError(
            f"engine.accumulation={config.engine.accumulation} is more than the {images} images of a rank; "
            "use less accumulation or a larger batch"
        )


def check_model(config: Config, world_size: int) -> Model:
    """Build the encoder without memory and check what does not depend on the data.

    Raises UserError for the first thing that cannot work.
    """
    check_share(config, world_size)
    refuse_unfit(config.views.actions, config.data.channel_count)
    refuse_rotations(config.views.actions, config.augment)
    _refuse_by_name(config)
    channels, named = config.data.channel_count, config.data.channel_names is not None
    kwargs = timm_kwargs(config.encoder, config.views.global_size, channels, named=named)
    if isinstance(config.objective, SupervisedConfig) and config.objective.reads != "embedding":
        kwargs |= {FEATURES: config.objective.reads}
    encoder: Any = create_on_meta(config.encoder.name, kwargs)
    patch = patch_size(encoder)
    sizes = {f"views.{r.kind}_size": r.size for r in config.views.resolutions()}
    if config.views.whole_size:
        sizes["views.whole_size"] = config.views.whole_size
    for key, size in sizes.items():
        if size % patch:
            near = " or ".join(str(s) for s in (size // patch * patch, (size // patch + 1) * patch) if s)
            raise UserError(f"{key}={size} is not a multiple of the encoder's patch of {patch}; use {near}")
    check_frozen(config.encoder.freeze, encoder)
    check_adapters(config.encoder.lora, config.encoder.name, encoder, config.engine.precision)
    few = create_on_meta(config.encoder.name, with_few_blocks(config.encoder.name, kwargs))
    width = embedding_width(few, config.encoder.name, channels, sizes.values())
    model = Model(kwargs, encoder, width)
    check_ranks(config, model, world_size)
    return model


def check_ranks(config: Config, model: Model, world_size: int) -> None:
    """Check the engine and the number of ranks for a model that `check_model` has returned.

    The engine may be another one than then. Raises UserError for the first thing that cannot work.
    """
    check_share(config, world_size)
    followed = config.objective.kind == "jepa" or config.average.momentum is not None
    check_engine(config.engine, world_size, model.encoder, followed)
    passes = config.engine.passes(config.data.batch_size, world_size)
    if passes > 1 and config.engine.accumulate == "exact" and has_batch_norm(model.encoder):
        raise UserError(
            f"engine.accumulation={passes}: the batch norm of {config.encoder.name} sees "
            "micro-batches, so it cannot be exact; use engine.accumulate=microbatch or another encoder"
        )
    if isinstance(config.objective, SupervisedConfig):
        check_mixing(config, config.objective, world_size)
        check_views_of_masks(config, config.objective)
        if config.objective.head_steps and config.engine.kind == "deepspeed":
            raise UserError(
                "objective.head_steps has not been tried with engine.kind=deepspeed; use engine.kind=ddp or "
                "fsdp, or objective.head_steps=0"
            )
    rehearse(config, model.kwargs, model.width, world_size)


def _refuse_by_name(config: Config) -> None:
    """Raise UserError for augmentations that turn colours or move channels, if channels are found by name."""
    if config.data.channel_names is None:
        return
    if "hue" in config.views.actions:
        raise UserError(
            "views.actions has hue, which turns red, green and blue, but data.channels finds channels by "
            "name; leave hue out, or use data.channels=3"
        )
    if config.augment.channel_shuffle_probability:
        raise UserError(
            "augment.channel_shuffle_probability would put channels under wrong names; set it to 0, or use "
            "augment.channel_drop_probability"
        )
