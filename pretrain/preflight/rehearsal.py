"""Rehearse a training step before any process starts: refuse sizes that cannot work, and random encoders.

The encoder runs once in training mode without memory or arithmetic, on torch's meta device. If all of its
blocks are alike, it has only two of them. The head runs on a few images of zeros.
"""

import functools
import json
from collections.abc import Iterator
from typing import Any

import torch
from pydantic import TypeAdapter
from torch.utils._python_dispatch import TorchDispatchMode

from isotorus.errors import UserError
from pretrain.config import Config
from pretrain.methods import blank_embeddings, build_head, inputs_beside
from pretrain.methods.config import ObjectiveConfig, Turned
from pretrain.models.encoder import ViewEncoder, create_on_meta
from pretrain.models.repeated import with_few_blocks

ENOUGH = 8
"""Number of images from which on a batch can do all that a larger one can."""


def rehearse(config: Config, kwargs: dict[str, Any], width: int, world_size: int) -> None:
    """Raise `UserError` if the encoder, built with `kwargs`, or the loss cannot be computed in training.

    The numbers of images and views are those of a step, up to `ENOUGH`; `width` is the embedding's.
    """
    name, engine = config.encoder.name, config.engine
    passes = engine.passes(config.data.batch_size, world_size)
    together = world_size * (config.data.batch_size // world_size // passes)  # images of all ranks in a pass
    try:
        draws = _draws(config, kwargs, together)
    except Exception as error:
        raise UserError(
            f"{name} cannot be trained on {together} images at once ({_first_line(error)}); use a larger "
            "data.batch_size, less engine.accumulation, or more views"
        ) from None
    if draws:
        raise UserError(
            f"{name} draws random numbers from a generator's state ({draws}), as dropout does, "
            f"so no step could be repeated; {_remedy(config, kwargs, together)}"
        )
    images = config.data.batch_size if engine.accumulate == "exact" else together
    views, n_global = sum(r.views for r in config.views.resolutions()), config.views.global_views
    try:
        if images < 2:
            raise ValueError("statistics over the batch need at least 2 images")
        _lose(config, width, views, min(images, ENOUGH))
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"objective.kind={config.objective.kind} cannot be trained on {images} images in {views} views, "
            f"{n_global} of them global: {_first_line(error)}; change data.batch_size, views or the objective"
        ) from None


def _draws(config: Config, kwargs: dict[str, Any], images: int) -> str:
    """Run the encoder in training mode; return the random operation that it used, or an empty string.

    Drop-path does not count, as its masks follow from seed, step and sample. Operations are observed instead
    of modules, because timm calls dropout as a function too.
    """
    views = tuple((r.views, r.size) for r in config.views.resolutions())
    few = with_few_blocks(config.encoder.name, kwargs)
    channels = config.data.channel_count
    return _random(config.encoder.name, json.dumps(few), views, min(images, ENOUGH), channels)


@functools.cache
def _random(name: str, kwargs: str, views: tuple[tuple[int, int], ...], images: int, channels: int) -> str:
    """Return an encoder's random operation, or ""; `views` are pairs of number and size, `kwargs` is JSON."""
    encoder = ViewEncoder(create_on_meta(name, json.loads(kwargs))).train()
    with torch.device("meta"):
        pixels = [torch.empty(count, images, channels, size, size) for count, size in views]
        keys = torch.zeros(sum(count for count, _ in views), images, dtype=torch.int64)
    # In inference mode torch would show dropout of rate 0 as well.
    with torch.inference_mode(False), torch.no_grad(), _Observed() as observed:
        encoder(pixels, keys)
    return observed.random


class _Observed(TorchDispatchMode):
    """Notes the name of the last random operation that torch runs."""

    random = ""

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: Any = (), options: dict[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in operation.tags:
            self.random = str(operation)
        return operation(*arguments, **(options or {}))


def _remedy(config: Config, kwargs: dict[str, Any], images: int) -> str:
    """Name the argument without which the encoder is not random."""
    for remedy, changed in _changes(config.encoder.kwargs, kwargs):
        try:
            if not _draws(config, changed, images):
                return remedy
        except Exception:  # an encoder that cannot be built or run with the change
            continue
    return "use another encoder"


def _changes(given: dict[str, Any], kwargs: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield changes of an encoder's arguments, in words and as arguments."""
    for key, value in given.items():
        yield f"leave out encoder.kwargs.{key}={value}", {k: x for k, x in kwargs.items() if k != key}
    rates = {key: 0.0 for key in given if "drop" in key and "path" not in key}
    if len(rates) > 1:
        yield f"leave out {' and '.join(f'encoder.kwargs.{key}' for key in rates)}", kwargs | rates
    yield "set encoder.kwargs.drop_rate=0", kwargs | {"drop_rate": 0.0}


def _lose(config: Config, width: int, views: int, images: int) -> None:
    """Compute the loss of embeddings of zeros."""
    objective, turned = config.objective.model_dump_json(), Turned.of(config.views)
    _loss_of_zeros(objective, width, config.views.global_views, views, images, turned)


@functools.cache
def _loss_of_zeros(
    objective: str, width: int, n_global: int, views: int, images: int, turned: Turned | None
) -> None:
    """Compute the loss of embeddings of zeros; `objective` is JSON."""
    config: ObjectiveConfig = TypeAdapter(ObjectiveConfig).validate_json(objective)
    head = build_head(config, width, n_global, 0, turned)
    beside = inputs_beside(config, n_global, views, images, turned)
    with torch.no_grad():
        head(blank_embeddings(config, views, images, width), 0, *beside)


def _first_line(error: Exception) -> str:
    """Return the first line of an error."""
    return str(error).split("\n", 1)[0] or type(error).__name__
