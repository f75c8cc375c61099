"""Windings of an encoder whose angles are known functions of the image, and of others that lack them."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pretrain import engines
from pretrain.config import Config
from pretrain.methods import build_head
from pretrain.methods.config import Turned
from pretrain.models.encoder import create
from pretrain.monitoring.windings import Windings
from tests.eval_suite.torus_samples import KWARGS, SIZE, pack_spots, save_known_torus


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_spots(tmp_path_factory.mktemp("spots") / "shards", 40)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_known_torus(tmp_path_factory.mktemp("known") / "checkpoint")


def monitor(
    spots: Path, known: Path, rows: list[int], change: Callable[[nn.Module], Any] | None = None, **more
):
    """Return what measures the known encoder, whose head gives the pairs `rows` of its own eight numbers."""
    config = Config(
        name="x",
        steps=100,
        data={"path": str(spots), "batch_size": 4},
        views={"global_size": SIZE, "local_views": 0, "actions": ["rotation", "hue"], "turned": "all"},
        objective={"kind": "torus", "angles": len(rows), "head": {"layers": 1}} | more,
        engine={"precision": "fp32"},
    )
    head = build_head(config.objective, 16, 2, 0, Turned.of(config.views))

    def encoder() -> nn.Module:
        model: nn.Module = create("vit_tiny_patch16_224", KWARGS)
        if not next(model.parameters()).is_meta:
            model.load_state_dict(load_file(known / "encoder.safetensors"))
        return model

    engine = engines.build_engine(encoder, head, config.engine, config.optimizer, torch.device("cpu"))
    linear = engine.networks.head.get_submodule("projector.0")
    if "head" not in more:
        with torch.no_grad():
            linear.weight.copy_(torch.eye(8, 16)[[2 * row + k for row in rows for k in (0, 1)]])
            linear.weight[3].neg_()  # the chroma plane turns the other way round than the known hue
            linear.bias.zero_()
            if change:
                change(linear)
    inputs = SimpleNamespace(sources=config.data.open(), mean=(0.5,) * 3, std=(0.2,) * 3)
    return Windings(config, inputs, engine)  # type: ignore[arg-type]


def test_known_angles_wind_as_they_should(spots: Path, known: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        row = monitor(spots, known, [0, 3]).measure(50)
    assert row["windings_right"] == row["windings_rotation"] == row["windings_hue"] == 1
    assert 0.3 < row["turned_uniformity_over_null"] < 3
    assert "batch_norm_gap" not in row and not caplog.records


def test_a_winding_the_wrong_way_round_is_said_once(
    spots: Path, known: Path, caplog: pytest.LogCaptureFixture
):
    backwards = monitor(spots, known, [0, 3], lambda linear: linear.weight[1].neg_())
    with caplog.at_level(logging.WARNING):
        assert backwards.measure(10)["windings_rotation"] == 0
        assert not caplog.records, "too early to say"
        backwards.measure(30)
        row = backwards.measure(60)
    (said,) = caplog.messages
    assert row["windings_right"] == row["windings_rotation"] == 0 and row["windings_hue"] == 1
    assert "the winding of rotation is stuck: right on 0 % of 32 images" in said
    assert "goes round -1.0 times on average instead of 1" in said


def test_an_order_is_a_number_of_turns(spots: Path, known: Path):
    row = monitor(spots, known, [0, 3], order=[2, 1]).measure(50)
    assert row["windings_rotation"] == 0 and row["windings_hue"] == 1


def test_angles_that_no_action_turns_are_not_uniform(spots: Path, known: Path):
    """The head gives the hue twice; rotation turns neither angle."""
    row = monitor(spots, known, [3, 3]).measure(50)
    assert row["windings_rotation"] == 0 and row["turned_uniformity_over_null"] > 20


def test_the_gap_between_the_batch_and_running_statistics_is_in_degrees(spots: Path, known: Path):
    """Running statistics that a batch norm never saw are far from the batch; afterwards they are the same."""
    found = monitor(spots, known, [0, 3], norm="batch", head={"hidden": 64, "layers": 2})
    before = {name: x.clone() for name, x in found.engine.networks.state_dict().items()}
    assert found.measure(50)["batch_norm_gap"] > 5
    after = found.engine.networks.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())
    assert all(module.training for module in found.engine.networks.modules())
