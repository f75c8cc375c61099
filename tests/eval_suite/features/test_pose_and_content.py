"""An embedding that is divided into pose and content gives both, and angles that are read from the pose."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eval_suite.features.representation import Representation, pretrained
from eval_suite.inputs import find
from isotorus.errors import UserError
from tests.eval_suite.torus_samples import save_known_torus, spot

TORUS = {"actions": ["rotation", "hue"], "orders": [1, 1], "pose_width": 8, "border": "disc", "size": 32}


def representation(folder: Path, torus: dict[str, Any] | None) -> Representation:
    """The known torus, whose angles are functions of the first eight numbers of its embedding."""
    save_known_torus(folder)
    if torus:
        described = json.loads((folder / "encoder.json").read_text()) | {"torus": torus}
        (folder / "encoder.json").write_text(json.dumps(described))
        weights = {"0.weight": torch.eye(8), "0.bias": torch.zeros(8)}
        save_file(weights, folder / "projector.safetensors")
    (checkpoint,) = find.find([str(folder)])
    return pretrained(checkpoint)


def test_the_angles_are_those_of_the_pose(tmp_path: Path):
    images = torch.stack([torch.from_numpy(spot(i, i / 5)).permute(2, 0, 1) for i in range(3)])
    whole = representation(tmp_path / "whole", None).embed(images)
    divided = representation(tmp_path / "divided", TORUS).embed(images)
    assert divided.keys() - whole.keys() == {"pose", "content"}
    torch.testing.assert_close(divided["angles"], whole["angles"])
    torch.testing.assert_close(torch.cat([divided["pose"], divided["content"]], 1), whole["embedding"])
    assert divided["pose"].shape == (3, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pose_width": 16}, "leaves none of 16"),
        ({"orders": [1]}, "2 actions need as many orders"),
        ({"actions": ["rotation", "zoom"]}, "torus.actions"),
        ({"size": 0}, "torus.size"),
    ],
)
def test_a_strangers_torus_is_checked(tmp_path: Path, changes: dict[str, Any], said: str):
    with pytest.raises(UserError) as error:
        representation(tmp_path / "odd", TORUS | changes)
    assert said in str(error.value) and "\n" not in str(error.value)
