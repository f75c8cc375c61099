"""config.yaml keeps its history: a dated file for each start that changed something."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from pretrain.config import load_config
from pretrain.recording import config_history


def resolved(recipe: Path, *overrides: str) -> dict:
    return load_config(str(recipe), list(overrides)).model_dump(mode="json")


def test_only_a_start_that_changed_something_adds_a_file(recipe: Path, tmp_path: Path):
    config_history.record(tmp_path, resolved(recipe), 0, [])
    config_history.record(tmp_path, resolved(recipe), 4, [])
    assert not (tmp_path / "config_history").exists()
    config_history.record(tmp_path, resolved(recipe, "optimizer.lr=1e-4", "encoder.kwargs.depth=3"), 4, [])
    config_history.record(tmp_path, resolved(recipe, "steps=20"), 8, [])
    first, second = sorted((tmp_path / "config_history").iterdir())

    assert first.read_text().splitlines()[:3] == [
        "# From step 4 on, with these changes:",
        "#   encoder.kwargs.depth: 2 → 3",
        "#   optimizer.lr: 0.001 → 0.0001",
    ]
    again = load_config(str(first), [])  # it is a recipe
    assert again.optimizer.lr == 1e-4 and again.encoder.kwargs["depth"] == 3
    assert load_config(str(second), []) == load_config(str(recipe), ["steps=20"])
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["steps"] == 20
    assert config_history.changes(tmp_path) == [
        (4, "encoder.kwargs.depth", "2 → 3"),
        (4, "optimizer.lr", "0.001 → 0.0001"),
        (8, "steps", "12 → 20"),
        (8, "encoder.kwargs.depth", "3 → 2"),
        (8, "optimizer.lr", "0.0001 → 0.001"),
    ]


def test_a_value_that_is_set_or_left_out_is_a_change(recipe: Path, tmp_path: Path):
    config_history.record(tmp_path, resolved(recipe), 0, [])
    config_history.record(tmp_path, resolved(recipe, "encoder.kwargs.drop_path_rate=0.1"), 4, [])
    config_history.record(tmp_path, resolved(recipe), 8, [])
    assert [change[1:] for change in config_history.changes(tmp_path)] == [
        ("encoder.kwargs.drop_path_rate", "not set → 0.1"),
        ("encoder.kwargs.drop_path_rate", "0.1 → not set"),
    ]


BOMB = "a: &a [x, x]\n" + "".join(
    f"{to}: &{to} [{', '.join([f'*{of}'] * 10)}]\n" for of, to in pairwise("abcdefghi")
)


@pytest.mark.parametrize("present", ["no: [yaml", "- a list", "", BOMB])
def test_a_file_that_cannot_be_read_is_replaced(recipe: Path, tmp_path: Path, present: str):
    (tmp_path / "config.yaml").write_text(present)
    config_history.record(tmp_path, resolved(recipe), 0, [])
    assert load_config(str(tmp_path / "config.yaml"), []).steps == 12


def test_a_field_that_is_newer_than_the_file_is_no_change(recipe: Path, tmp_path: Path):
    config_history.record(tmp_path, resolved(recipe), 0, [])
    older = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del older["tracking"]["system_metrics"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    config_history.record(tmp_path, resolved(recipe), 4, [])
    assert not (tmp_path / "config_history").exists()
