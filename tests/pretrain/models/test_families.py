"""The smallest model of every family of timm trains and is evaluated, or is refused in one line.

The families are timm's modules, so that a new version of timm adds its new families.
"""

import functools
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from eval_suite.features.feature_sets import FeatureSets
from eval_suite.layers.blocks import calls_of, measurable, observe
from isotorus.errors import UserError
from pretrain.config import Config
from pretrain.models.blocks import depth_blocks
from pretrain.models.encoder import ViewEncoder, build_encoder
from pretrain.preflight.model import Model, check_model

LARGEST = 40e6
"""Number of parameters of the largest model that is tried."""
SIZES = (64, 224)


@functools.cache
def smallest(family: str) -> tuple[str, float]:
    """Return the smallest model of one of timm's modules, and its number of parameters."""
    sizes = {}
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
    return min(sizes.items(), key=lambda item: item[1]) if sizes else ("", 0.0)


def accepted(name: str, size: int, **encoder: object) -> Model:
    views = {"global_views": 2, "global_size": size, "local_views": 0}
    config = Config(
        name="x", steps=1, data={"path": "x", "batch_size": 2, "channels": 3}, views=views,
        encoder={"name": name, "kwargs": encoder},
    )  # fmt: skip
    return check_model(config, world_size=1)


def refused_or_accepted(name: str) -> Model | str:
    """Return the accepted model at the smallest size that fits it, or the reason of the refusal."""
    said = ""
    for size in SIZES:
        for kwargs in ({}, {"drop_rate": 0.0}):
            try:
                return accepted(name, size, **kwargs)
            except UserError as error:
                said = said or str(error)
    return said


@pytest.mark.nightly
@pytest.mark.parametrize("family", timm.list_modules())
def test_every_family_trains_and_is_evaluated_or_is_refused_in_one_line(family: str, tmp_path: Path):
    name, parameters = smallest(family)
    if not name or parameters > LARGEST:
        pytest.skip("no small model")
    model = refused_or_accepted(name)
    if isinstance(model, str):
        assert "\n" not in model
        pytest.skip(model)
    encoder = build_encoder(name, model.kwargs, seed=0)
    size = model.kwargs.get("img_size", SIZES[0])
    size = size if isinstance(size, int) else size[0]
    try:
        encoder.eval()(torch.zeros(1, 3, size, size))
    except Exception:
        size = SIZES[1]
    learns(encoder, size, model.width)
    is_evaluated(encoder.eval(), size, model.width)


def learns(encoder: nn.Module, size: int, width: int) -> None:
    """Compute the gradient of one batch; the embeddings must not depend on the state of the generator."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        views = ViewEncoder(encoder).train()
        images = torch.randn(1, 2, 3, size, size, generator=torch.Generator().manual_seed(0))
        out = views([images], torch.zeros(1, 2, dtype=torch.int64))
        assert out.shape == (1, 2, width)
        out.square().sum().backward()
        found.append(out.detach())
    torch.testing.assert_close(*found, rtol=0, atol=0)


@torch.no_grad()
def is_evaluated(encoder: nn.Module, size: int, width: int) -> None:
    """Compute the feature sets and what `eval layers` observes."""
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    sets = FeatureSets(encoder).eval()(images)
    torch.testing.assert_close(sets["embedding"], encoder(images), rtol=1e-4, atol=1e-5)
    assert sets["embedding"].shape == (4, width)
    try:
        blocks = measurable(encoder, depth_blocks(encoder), images[:2])
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert all(len(seen.vectors) == 4 for seen in observe(encoder, blocks, iter(images.split(3))))
    for call in calls_of(encoder, blocks, images):
        assert call(call.x).shape[0] == 4
