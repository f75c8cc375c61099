"""The torus head with known turns: what it takes back, which views and numbers each part sees, refusals."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from isotorus.errors import UserError
from pretrain.config import load_config
from pretrain.methods import build_head
from pretrain.methods.base import HeadOutput
from pretrain.methods.config import LeJEPAConfig, ObjectiveConfig, TorusConfig, Turned
from pretrain.methods.lejepa import LeJEPAHead
from pretrain.methods.torus import TorusHead
from pretrain.objectives.toroidal import chance_agreement
from pretrain.objectives.torus_frequencies import all_frequencies, balanced_s

IMAGES, WIDTH = 12, 8
SMALL = {"hidden": 16, "layers": 2}
LEJEPA = {"projector": SMALL | {"width": 4}, "sigreg": {"num_slices": 32}}
BOTH = ("rotation", "hue")


def config(**fields: Any) -> TorusConfig:
    return TorusConfig(kind="torus", **{"head": SMALL} | fields)


def head(turned: Turned | None, **fields: Any) -> TorusHead:
    found = build_head(config(**fields), WIDTH, n_global=2, seed=0, turned=turned)
    assert isinstance(found, TorusHead)
    return found


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs_as_embedding(turned: Turned | None, angles: int, **fields: Any) -> TorusHead:
    """A head whose pairs are the first numbers of the embedding."""
    found = head(turned, angles=angles, head={"layers": 1}, **fields)
    with torch.no_grad():
        found.projector[0].weight.copy_(torch.eye(2 * angles, WIDTH))
        found.projector[0].bias.zero_()
    return found


def as_pairs(angles: torch.Tensor) -> torch.Tensor:
    pairs = torch.stack([angles.cos(), angles.sin()], -1).flatten(-2)
    return torch.nn.functional.pad(pairs, (0, WIDTH - pairs.shape[-1]))


def values(output: HeadOutput) -> dict[str, float]:
    return {name: part.item() for name, part in output.parts.items()}


@pytest.mark.parametrize("orders", [[], [1, 3]])
def test_angles_that_turn_as_often_as_their_order_are_without_error(orders: list[int]):
    """The third angle belongs to no action, and is to stay."""
    turns = 6 * torch.rand(3, IMAGES, 2)
    known = torch.cat([turns * torch.tensor(orders or [1, 1]), torch.zeros(3, IMAGES, 1)], -1)
    own = pairs_as_embedding(Turned(0, BOTH), 3, order=orders)
    exact = values(own(as_pairs(6 * torch.rand(1, IMAGES, 3) + known), 0, turns))
    assert exact["prediction"] == pytest.approx(0, abs=1e-5)
    assert exact["agreement_rotation"] == pytest.approx(1) == exact["agreement_hue"]
    assert exact["agreement_chance"] == pytest.approx(chance_agreement(3))
    turning = known + turns[..., :1] * torch.tensor([0.0, 0.0, 1.0])
    assert values(own(as_pairs(turning), 0, turns))["prediction"] > 0.3


def test_an_invariant_head_wants_the_same_angles_whatever_the_turns():
    turns = 6 * torch.rand(3, IMAGES, 2)
    own = pairs_as_embedding(Turned(0, BOTH), 2, equivariant=False)
    same = values(own(as_pairs(6 * torch.rand(1, IMAGES, 2).expand(3, -1, -1)), 0, turns))
    assert same["prediction"] == pytest.approx(0, abs=1e-5)
    assert not any(name.startswith("agreement") for name in same)


def test_the_loss_is_the_weighed_sum_of_a_torus_and_lejepa_on_their_own_views_and_numbers():
    """Both losses are computed again by a head without content and by LeJEPA's own head."""
    embeddings, turns = draw(5, IMAGES, WIDTH), 6 * torch.rand(5, IMAGES, 2)
    both = head(Turned(3, BOTH), content="lejepa", content_weight=0.3, pose_width=5, lejepa=LEJEPA)
    torus = build_head(config(), 5, 2, seed=0, turned=Turned(0, BOTH))
    content = LeJEPAHead(3, LeJEPAConfig(**LEJEPA), n_global=2, seed=1)
    assert both.content is not None
    torus.projector.load_state_dict(both.projector.state_dict())  # type: ignore[union-attr, operator]
    content.load_state_dict(both.content.state_dict())
    found = both(embeddings, 7, turns)
    pose = torus(embeddings[3:, :, :5], 7, turns[3:])
    other = content(embeddings[:3, :, 5:], 7)
    # The random directions of LeJEPA follow from the seed, which is one more than that of the torus.
    expected = 0.7 * pose.parts["loss"] + 0.3 * other.parts["loss"]
    torch.testing.assert_close(found.parts["loss"], expected)
    torch.testing.assert_close(found.parts["content_prediction"], other.parts["prediction"])
    torch.testing.assert_close(both.content_projections(found.projections), other.projections)
    assert found.projections.shape[:2] == (5, IMAGES)


def test_angles_and_content_may_each_have_a_weight_of_their_own():
    auto = {"enabled": True, "rate": 0.1}
    own = head(None, weight=0.2, auto_weight=auto, content="lejepa", lejepa=LEJEPA | {"auto_weight": auto})
    first, second = (values(own(draw(5, IMAGES, WIDTH), 0)) for _ in range(2))
    torus = first["prediction"] + 0.2 * first["uniformity"]
    content = first["content_prediction"] + 0.05 * first["sigreg"]
    assert first["loss"] == pytest.approx(0.5 * torus + 0.5 * content)
    assert first["weight"] == pytest.approx(0.2) and first["lejepa_weight"] == pytest.approx(0.05)
    null = sum(all_frequencies(2, 3, balanced_s(2))[1]).item()
    assert second["weight"] == pytest.approx(max(0, 0.2 + 0.1 * (first["uniformity"] - 1.5 * null)))
    assert second["lejepa_weight"] != first["lejepa_weight"]


@pytest.mark.parametrize("first", [0, 3])
def test_each_part_reaches_its_views_and_its_numbers_alone(first: int):
    """If all views are turned, both parts see them all."""
    turns = 6 * torch.rand(5, IMAGES, 2)
    seen = {}
    for weight in (0.0, 1.0):
        embeddings = draw(5, IMAGES, WIDTH).requires_grad_()
        own = head(Turned(first, BOTH), content="lejepa", content_weight=weight, pose_width=5, lejepa=LEJEPA)
        own(embeddings, 0, turns).parts["loss"].backward()
        assert embeddings.grad is not None
        seen[weight] = embeddings.grad.abs().amax(1) > 0
    pose, content = torch.zeros(2, 5, WIDTH, dtype=torch.bool)
    pose[first:, :5] = True
    content[: first or None, 5:] = True
    assert torch.equal(seen[0.0], pose) and torch.equal(seen[1.0], content)


def test_in_evaluation_mode_the_pairs_are_those_of_all_embeddings():
    """With layer norm they are those of training too, whatever other images there are."""
    embeddings, turns = draw(5, IMAGES, WIDTH), 6 * torch.rand(5, IMAGES, 2)
    own = head(Turned(3, BOTH), content="lejepa", lejepa=LEJEPA)
    trained = own(embeddings, 0, turns).projections[3:]
    evaluated = own.eval()(embeddings[3:, :2], 0).projections
    torch.testing.assert_close(evaluated, trained[:, :2])


def refusal(turned: Turned | None, **fields: Any) -> str:
    with pytest.raises(UserError) as error:
        build_head(TypeAdapter(ObjectiveConfig).validate_python(fields), WIDTH, 2, seed=0, turned=turned)
    return str(error.value)


def test_heads_that_do_not_fit_the_actions_are_refused():
    all_turned = Turned(0, BOTH)
    assert "objective.angles=1, but each of the 2" in refusal(all_turned, kind="torus", angles=1)
    assert "names 2 actions (rotation, hue); give one order" in refusal(all_turned, kind="torus", order=[2])
    assert "names 0 actions (none); give one order" in refusal(None, kind="torus", order=[2])
    assert "no view is turned; set views.actions" in refusal(None, kind="torus", equivariant=True)
    assert "2 others would be encoded for nothing" in refusal(Turned(2, BOTH), kind="torus")
    wide = {"kind": "torus", "content": "lejepa", "pose_width": WIDTH}
    assert f"use at most {WIDTH - 1}" in refusal(all_turned, **wide)
    assert "objective.kind=jepa does not know views.actions" in refusal(all_turned, kind="jepa")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (["order=[1,0]"], "objective.order.1=0: input should be greater than 0"),
        (
            ["pose_width=4"],
            "objective.pose_width is for the content beside the angles; set objective.content",
        ),
        (["lejepa.weight=0.1"], "objective.lejepa is for the content beside the angles"),
        (["content=lejepa", "encoder_weight=0.1"], "use objective.lejepa.encoder_weight instead"),
        (["content=gaussian"], "objective.content='gaussian': input should be 'lejepa'"),
    ],
)
def test_fields_that_contradict_each_other_are_one_line(fields: list[str], said: str):
    with pytest.raises(UserError) as error:
        load_config("torus_m2", ["objective.encoder_weight=0", *(f"objective.{field}" for field in fields)])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_lejepa_takes_turned_views_for_augmented_ones():
    """Turning is an augmentation there, so that its head is the same with and without actions."""
    embeddings = draw(3, IMAGES, WIDTH)
    losses = [
        build_head(LeJEPAConfig(**LEJEPA), WIDTH, 2, 0, turned)(embeddings, 0).parts["loss"]
        for turned in (None, Turned(2, BOTH))
    ]
    assert losses[0] == losses[1]
