"""encoder.json of a torus head says what its certificate needs, and the evaluation reads it."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from data_pipeline.sources import Sources
from pretrain.config import Config
from pretrain.models.description import EncoderDescription
from pretrain.recording.encoder_json import encoder_json

BOTH = ["rotation", "hue"]


def described(views: dict[str, Any], objective: dict[str, Any]) -> EncoderDescription:
    config = Config(name="x", steps=1, data={"path": "unused"}, views=views, objective=objective)
    sources = Sources([], [])
    inputs: Any = SimpleNamespace(
        encoder_kwargs={}, embedding_width=32, mean=(0.5,), std=(0.2,), sources=sources, warm_start=None
    )
    values = encoder_json(config, inputs) | {"step": 0}
    del values["warm_start"]
    return TypeAdapter(EncoderDescription).validate_python(values | {"mean": [0.5], "std": [0.2]})


@pytest.mark.parametrize(
    ("views", "objective", "orders", "pose", "size", "norm"),
    [
        (
            {"actions": BOTH, "turned_size": 48},
            {"content": "lejepa", "pose_width": 8},
            [1, 1],
            8,
            48,
            "layer",
        ),
        ({"actions": BOTH, "turned": "all"}, {"order": [4, 1], "norm": "batch"}, [4, 1], None, 64, "batch"),
        ({"actions": BOTH}, {"equivariant": False}, [1, 1], None, 64, "layer"),
        ({}, {}, [], None, 64, "batch"),
    ],
)
def test_a_torus_is_described(views, objective, orders, pose, size, norm):
    found = described({"global_size": 64} | views, {"kind": "torus"} | objective)
    assert found.torus is not None and found.projector is not None
    assert (found.torus.actions, found.torus.orders) == (views.get("actions", []), orders)
    assert (found.torus.pose_width, found.torus.size, found.torus.border) == (pose, size, "disc")
    assert (found.projector.angles, found.projector.norm) == (2, norm)
    assert (found.torus.content is not None) == ("content" in objective)


def test_other_heads_have_no_torus():
    assert described({"actions": BOTH}, {"kind": "lejepa"}).torus is None
