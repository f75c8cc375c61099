"""encoder.json says what a certificate needs and how numbers became brightness; the evaluation reads it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.intensity import Intensity
from data_pipeline.packing.pack import Options, pack
from data_pipeline.sources import Sources
from pretrain.config import Config
from pretrain.models.description import EncoderDescription
from pretrain.preflight.inputs import RunInputs
from pretrain.recording.encoder_json import encoder_json

BOTH = ["rotation", "hue"]


def described(
    views: dict[str, Any], objective: dict[str, Any], sources: Sources | None = None
) -> EncoderDescription:
    config = Config(name="x", steps=1, data={"path": "unused"}, views=views, objective=objective)
    sources = sources or Sources([], [])
    inputs = RunInputs(sources, encoder_kwargs={}, embedding_width=32, mean=(0.5,), std=(0.2,))
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


def test_it_says_how_numbers_of_each_source_become_brightness(tmp_path: Path):
    rules = [None, Intensity(rule="window:0,4095", nodata=0), Intensity(rule="window:0,4095", nodata=0)]
    datasets = []
    for i, rule in enumerate(rules):
        (tmp_path / f"{i}").mkdir()
        np.save(tmp_path / f"{i}/a.npy", np.arange(12, dtype=np.uint16).reshape(3, 4))
        pack(tmp_path / f"{i}", tmp_path / f"{i}-set", Options(intensity=rule))
        datasets.append(Dataset(tmp_path / f"{i}-set"))
    found = described({}, {"kind": "lejepa"}, Sources(datasets, [1.0] * 3))
    assert found.intensity == ["none", "window:0,4095 --nodata=0"]
    assert described({}, {"kind": "lejepa"}, Sources(datasets[:1], [1.0])).intensity == ["none"]
