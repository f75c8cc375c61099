"""The content of encoder.json, which describes a checkpoint's encoder to those who load it."""

from typing import Any

from data_pipeline.transforms.physical import whole_square
from pretrain.config import Config
from pretrain.methods import describe_projector
from pretrain.methods.config import TorusConfig, Turned
from pretrain.models.encoder import create_on_meta, embedding_width
from pretrain.models.feature_sets import FEATURES, MAP
from pretrain.preflight.inputs import RunInputs


def encoder_json(config: Config, inputs: RunInputs) -> dict[str, Any]:
    """Return encoder.json without the key `step`, which `pretrain.checkpoint.store` adds."""
    square = whole_square(config.views)
    kwargs, width = plain(config, inputs)
    return {
        "format": 1,
        "name": config.encoder.name,
        "kwargs": kwargs,
        "embedding_width": width,
        "image_size": config.views.whole_side,
        "channels": config.data.channel_count,
        "channel_names": config.data.channel_names,
        "mean": inputs.mean,
        "std": inputs.std,
        "seed": config.seed,
        "data_fingerprint": inputs.sources.fingerprint,
        "images": len(inputs.sources),
        "depth": inputs.sources.depth,
        "intensity": sorted({str(dataset.intensity) for dataset in inputs.sources.datasets}),
        "projector": describe_projector(config.objective, Turned.of(config.views)),
        "torus": _torus(config),
        "square": square and square._asdict(),
        "supervised": inputs.task and inputs.task.describe(),
        "readings_before": list(inputs.readings_before),
        "warm_start": inputs.warm_start and inputs.warm_start._asdict(),
        "config": config.model_dump(mode="json"),
    }


def plain(config: Config, inputs: RunInputs) -> tuple[dict[str, Any], int]:
    """Return the arguments and the embedding's width of the encoder as it is described.

    An encoder that gives a map in training is described as timm's model, which gives a vector. All commands
    that read a checkpoint expect a vector, and those that predict masks make the encoder give its map.
    """
    kwargs, name = inputs.encoder_kwargs, config.encoder.name
    if kwargs.get(FEATURES) != MAP:
        return kwargs, inputs.embedding_width
    kwargs = {key: x for key, x in kwargs.items() if key != FEATURES}
    sizes = [config.views.whole_side]
    return kwargs, embedding_width(create_on_meta(name, kwargs), name, config.data.channel_count, sizes)


def _torus(config: Config) -> dict[str, Any] | None:
    """Return how the angles of a torus head follow the image; None for other heads."""
    objective, turned = config.objective, Turned.of(config.views)
    if not isinstance(objective, TorusConfig):
        return None
    seen = next(r for r in config.views.resolutions() if r.turned or turned is None)
    return {
        "actions": config.views.actions,
        "orders": objective.orders(turned),
        "pose_width": objective.pose_width,
        "border": config.views.border,
        "size": seen.size,
        "content": describe_projector(objective.lejepa, None) if objective.content else None,
    }
