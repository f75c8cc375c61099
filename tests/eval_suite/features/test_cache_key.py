"""Cached features are reused only where all they depend on is the same."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from data_pipeline.transforms.physical import Square
from eval_suite.features.representation import Representation, pretrained
from eval_suite.inputs import find

CPU = torch.device("cpu")


@pytest.fixture
def representation(checkpoint: Path) -> Representation:
    return pretrained(find.find([str(checkpoint)])[0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("described", {"name": "vit_small_patch16_224"}),
        ("weights", "0" * 64),
        ("width", 12),
        ("sets", ("last2",)),
        ("size", 40),
        ("channels", 1),
        ("mean", (0.4, 0.5, 0.5)),
        ("std", (0.2, 0.2, 0.3)),
        ("square", Square(30, "mm", "refuse")),
    ],
)
def test_every_part_of_an_encoder_is_in_the_key(representation: Representation, field: str, value: Any):
    other = dataclasses.replace(representation, **{field: value})
    assert other.key(CPU) != representation.key(CPU)
    assert dataclasses.replace(other, **{field: getattr(representation, field)}).key(
        CPU
    ) == representation.key(CPU)


def test_so_are_precision_versions_and_every_argument(
    representation: Representation, monkeypatch: pytest.MonkeyPatch
):
    keys = {representation.key(CPU), representation.key(torch.device("cuda"))}
    for name in representation.described["kwargs"]:
        kwargs = representation.described["kwargs"] | {name: "other"}
        described = representation.described | {"kwargs": kwargs}
        keys.add(dataclasses.replace(representation, described=described).key(CPU))
    assert len(keys) == 2 + len(representation.described["kwargs"])
    for module in (timm, torch):
        monkeypatch.setattr(module, "__version__", "0.0.1")
        assert representation.key(CPU) not in keys
        keys.add(representation.key(CPU))


def test_another_pooling_of_the_same_weights_gives_other_features(
    tmp_path: Path, splits: dict[str, Path], command: Callable
):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10)
    save_for_hf(model, str(tmp_path / "m"), safe_serialization=True)
    options = ["--train", splits["train"], "--val", splits["val"], "--metrics", "rank"]
    options += ["--baselines", "pixels", "--json"]

    def rank(*more: object) -> float:
        outcome = command(tmp_path / "m", *options, *more)
        assert outcome.code == 0, outcome.err
        found: float = json.loads(outcome.out)["representations"]["pretrained"]["rank"]["effective_rank"]
        return found

    before = rank()
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"global_pool": "avg"', '"global_pool": "max"'))
    after = rank()
    assert after != pytest.approx(before, rel=1e-3)
    assert after == rank("--out", tmp_path / "fresh")
