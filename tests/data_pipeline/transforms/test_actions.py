"""Actions on images in closed form, and the loader's resampling beside them."""

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from data_pipeline.transforms.actions import turn
from data_pipeline.transforms.config import Action, ViewsConfig
from data_pipeline.transforms.hue import WEIGHTS
from data_pipeline.transforms.views import cut, draw, draw_angles
from tests.data_pipeline.encoders import encoded, npy
from tests.data_pipeline.pictures import picture

borders = pytest.mark.parametrize("border", ["disc", "reflect"])


def smooth(n: int = 3, size: int = 48, waves: int = 3) -> Tensor:
    """Images in [0, 1] that are periodic, and whose shortest wave is several pixels long."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((size, size)) * (2 * math.pi / size)
    images = np.zeros((n, 3, size, size))
    for p in range(-waves, waves + 1):
        for q in range(-waves, waves + 1):
            amplitude, phase = rng.normal(size=(2, n, 3, 1, 1))
            images += amplitude * np.cos(p * rows + q * columns + 6 * phase) / (1 + p * p + q * q)
    low, high = images.min(), images.max()
    return torch.from_numpy((images - low) / (high - low)).float()


def disc(size: int, margin: float = 0.0) -> Tensor:
    """Whether pixels lie in the inscribed disc, at least `margin` pixels away from its edge."""
    place = torch.arange(size) - (size - 1) / 2
    return place[:, None] ** 2 + place**2 <= (size / 2 - margin) ** 2


def same(n: int, *angles: float) -> Tensor:
    return torch.tensor([angles]).repeat(n, 1)


@borders
@pytest.mark.parametrize("angle", [0.0, 2 * math.pi])
@pytest.mark.parametrize("action", ["rotation", "hue", "shift_x", "shift_y"])
def test_a_whole_turn_changes_nothing(action: Action, angle: float, border: str) -> None:
    images = smooth()
    turned = turn(images, [action], same(3, angle), border)
    inside = disc(48) if action == "rotation" and border == "disc" else torch.ones(48, 48, dtype=torch.bool)
    torch.testing.assert_close(turned[..., inside], images[..., inside], atol=2e-6, rtol=0)
    assert (turned[..., ~inside] == 0.5).all()


@borders
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_of_a_turn_is_rot90(quarters: int, border: str) -> None:
    images = smooth()
    turned = turn(images, ["rotation"], same(3, quarters * math.pi / 2), border)
    inside = disc(48) if border == "disc" else torch.ones(48, 48, dtype=torch.bool)
    expected = images.rot90(quarters, (2, 3))
    torch.testing.assert_close(turned[..., inside], expected[..., inside], atol=1e-5, rtol=0)


@pytest.mark.parametrize("action", ["rotation", "hue", "shift_x", "shift_y"])
def test_two_turns_compose(action: Action) -> None:
    images, (a, b) = smooth(), (0.9, 2.3)
    twice = turn(turn(images, [action], same(3, a), "reflect"), [action], same(3, b), "reflect")
    once = turn(images, [action], same(3, a + b), "reflect")
    inside = disc(48, margin=4)
    # Only pixels are interpolated; the hue is exact.
    error = (twice - once)[..., inside].abs().max()
    assert error < (1e-6 if action == "hue" else 0.02)
    assert (once - images)[..., inside].abs().max() > 0.2


@pytest.mark.parametrize(("action", "dim"), [("shift_x", 3), ("shift_y", 2)])
def test_a_shift_by_whole_pixels_is_a_roll(action: Action, dim: int) -> None:
    images = smooth()
    for pixels in (1, 17, 47):
        turned = turn(images, [action], same(3, pixels * 2 * math.pi / 48))
        torch.testing.assert_close(turned, images.roll(pixels, dim), atol=1e-4, rtol=0)


def test_a_shift_by_half_a_pixel_interpolates_across_the_seam() -> None:
    waves = torch.arange(48) * (2 * math.pi / 48)
    images = waves.sin().expand(1, 3, 48, 48)
    turned = turn(images, ["shift_x"], torch.tensor([[math.pi / 48]]))
    torch.testing.assert_close(turned[0, 0, 0], (waves - math.pi / 48).sin(), atol=1e-3, rtol=0)


def test_the_hue_keeps_luma_and_grey_and_is_not_clipped() -> None:
    images, weights = smooth(), torch.tensor(WEIGHTS).view(3, 1, 1)
    turned = turn(images, ["hue"], torch.tensor([[0.3], [2.0], [5.0]]))
    luma = (weights * images).sum(1)
    torch.testing.assert_close((weights * turned).sum(1), luma, atol=1e-6, rtol=0)
    assert turned.min() < 0 or turned.max() > 1
    grey = images[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(turn(grey, ["hue"], same(3, 2.0)), grey, atol=1e-6, rtol=0)
    opposite = turn(images, ["hue"], same(3, math.pi))
    torch.testing.assert_close(opposite, 2 * luma[:, None] - images, atol=1e-6, rtol=0)


def test_red_turns_by_the_angle_in_the_plane_of_i_and_q() -> None:
    """The axes are those of the NTSC standard as `colorsys` of Python has them, except for its rounding."""
    import colorsys

    red = torch.tensor([0.8, 0.1, 0.2])
    turned = turn(red.view(1, 3, 1, 1), ["hue"], torch.tensor([[0.7]])).flatten().tolist()
    (y, i, q), (y2, i2, q2) = colorsys.rgb_to_yiq(*red.tolist()), colorsys.rgb_to_yiq(*turned)
    assert y2 == pytest.approx(y, abs=5e-3)
    assert math.hypot(i2, q2) == pytest.approx(math.hypot(i, q), abs=0.01)
    assert math.atan2(q2, i2) - math.atan2(q, i) == pytest.approx(0.7, abs=0.02)


def test_every_image_has_its_own_angles_and_several_actions_act_at_once() -> None:
    images, angles = smooth(), torch.rand(3, 2, generator=torch.Generator().manual_seed(1)) * 6
    both = turn(images, ["rotation", "hue"], angles)
    for n in range(3):
        rotated = turn(images[n : n + 1], ["rotation"], angles[n : n + 1, :1])
        hued = turn(rotated, ["hue"], angles[n : n + 1, 1:])
        torch.testing.assert_close(both[n : n + 1], hued, atol=1e-6, rtol=0)
    swapped = turn(images, ["hue", "rotation"], angles.flip(1))
    assert torch.equal(swapped, both)


def crops(data: bytes, config: ViewsConfig, flips: tuple[float, float], dtype: torch.dtype, seed: int = 3):
    """Cut turned views, and the same crops unturned; return both, their angles and the crops."""
    (resolution,) = config.resolutions()
    size, angles = resolution.size, draw_angles(np.random.default_rng(seed), config)
    results = []
    for chosen in (config, config.model_copy(update={"actions": [], "turned": 2})):
        out = [torch.zeros(resolution.views, 3, size, size, dtype=dtype)]
        cut(np.random.default_rng(seed), data, chosen, flips, out, angles=angles)
        results.append(out[0].float() / torch.iinfo(dtype).max)
    return *results, torch.from_numpy(angles[0])


def all_turned(views: int, size: int, *actions: Action, **fields: Any) -> ViewsConfig:
    """Return a configuration of turned views of one size, and of no others."""
    return ViewsConfig(
        global_views=views, global_size=size, local_views=0, actions=[*actions], turned="all", **fields
    )


SOURCES = {
    torch.uint8: npy((smooth(1, 160)[0].permute(1, 2, 0) * 255).round().numpy().astype(np.uint8)),
    torch.uint16: npy((smooth(1, 160)[0].permute(1, 2, 0) * 65_535).round().numpy().astype(np.uint16)),
}


@borders
@pytest.mark.parametrize("dtype", SOURCES)
@pytest.mark.parametrize("size", [24, 64, 150])
def test_a_rotated_view_is_its_unturned_crop_rotated(dtype: torch.dtype, size: int, border: str) -> None:
    """Crops are shrunk or enlarged, of any aspect ratio, and mirrored before they are rotated."""
    config = all_turned(8, size, "rotation", border=border)
    turned, upright, angles = crops(SOURCES[dtype], config, (1, 0), dtype)
    expected, inside = turn(upright, ["rotation"], angles, border), disc(size, margin=2)
    assert (turned - expected)[..., inside].abs().max() < 0.02
    assert (turned - upright)[..., inside].abs().mean() > 0.05
    if border == "disc":
        assert (turned[..., ~disc(size)] - 0.5).abs().max() < 1 / 255


def test_corners_show_the_image_around_the_crop_and_beyond_it_a_mirror_image() -> None:
    columns = np.arange(120)
    ramp = np.broadcast_to((columns * 2).astype(np.uint8), (120, 120))[..., None].repeat(3, 2)
    config = all_turned(16, 32, "rotation", global_scale=(0.1, 0.2), ratio=(1, 1), border="reflect")
    angles = draw_angles(np.random.default_rng(1), config)
    out = [torch.zeros(16, 3, 32, 32, dtype=torch.uint8)]
    cut(np.random.default_rng(1), npy(ramp), config, (0, 0), out, angles=angles)
    boxes = draw(np.random.default_rng(1), 120, 120, config, (0, 0))[0]
    place = np.arange(32) - 15.5
    for view, ((_, left, _, width), _), angle in zip(out[0], boxes, angles[0][:, 0], strict=True):
        x = np.cos(angle) * place[None, :] - np.sin(angle) * place[:, None]
        x = left + width / 2 - 0.5 + x * width / 32
        mirrored = np.where(x < -0.5, -1 - x, np.where(x > 119.5, 239 - x, x))
        far = (np.abs(x + 0.5) > 4) & (np.abs(x - 119.5) > 4)  # the kernel smooths the fold
        assert np.abs(view[0].numpy() - 2 * mirrored)[far].max() < 1.5


@pytest.mark.parametrize("dtype", SOURCES)
def test_a_shifted_view_is_its_unturned_crop_shifted(dtype: torch.dtype) -> None:
    config = all_turned(8, 40, "shift_y", "shift_x", global_scale=(1, 1))
    turned, upright, angles = crops(SOURCES[dtype], config, (1, 0), dtype)
    expected = turn(upright, ["shift_y", "shift_x"], angles)
    assert (turned - expected).abs().max() < 0.03
    assert (turned - upright).abs().mean() > 0.05


def test_a_crop_that_shrinks_is_antialiased_at_every_angle() -> None:
    checkers = (np.indices((192, 192)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    config = all_turned(12, 32, "rotation", global_scale=(1, 1))
    turned, _, _ = crops(npy(checkers), config, (0, 0), torch.uint8)
    assert (turned[..., disc(32)] - 0.5).abs().max() < 0.04


def test_photographs_that_are_decoded_smaller_are_turned_alike() -> None:
    photo = picture(1, height=300, width=400).resize((1200, 900))
    config = all_turned(6, 64, "rotation", global_scale=(0.8, 1))
    turned, upright, angles = crops(encoded(photo, "jpeg", quality=95), config, (1, 0), torch.uint8)
    error = (turned - turn(upright, ["rotation"], angles))[..., disc(64, margin=2)]
    assert error.square().mean().sqrt() < 0.03


def test_turned_views_beside_the_others_leave_those_as_they_are() -> None:
    data, seed = encoded(picture(3), "png"), 5
    plain = ViewsConfig(global_size=32, local_size=16, local_views=3)
    more = plain.model_copy(update={"actions": ["rotation", "hue"], "turned": 4, "turned_size": 20})
    assert [(r.views, r.size, r.turned) for r in more.resolutions()] == [
        (2, 32, False), (3, 16, False), (4, 20, True)
    ]  # fmt: skip
    without, beside = (
        [torch.zeros(r.views, 3, r.size, r.size, dtype=torch.uint8) for r in c.resolutions()]
        for c in (plain, more)
    )
    cut(np.random.default_rng(seed), data, plain, (0.5, 0.5), without)
    angles = draw_angles(np.random.default_rng(seed), more)
    cut(np.random.default_rng(seed), data, more, (0.5, 0.5), beside, angles=angles)
    assert all(torch.equal(a, b) for a, b in zip(without, beside[:2], strict=True)) and beside[2].any()
    assert not angles[0].any() and not angles[1].any() and angles[2].shape == (4, 2)


def test_angles_are_uniform_and_no_action_changes_those_of_another() -> None:
    views = {"local_views": 0, "turned": 2000}
    both = draw_angles(np.random.default_rng(0), ViewsConfig(actions=["hue", "rotation"], **views))[1]
    alone = draw_angles(np.random.default_rng(0), ViewsConfig(actions=["rotation"], **views))[1]
    np.testing.assert_array_equal(both[:, 1], alone[:, 0])
    assert both.dtype == np.float32 and both.min() >= 0 and both.max() < 2 * math.pi
    for column in both.T:
        assert kstest(column / (2 * math.pi), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(both.T)[0, 1]) < 0.1
    assert draw_angles(np.random.default_rng(0), ViewsConfig()) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"actions": ["hue", "rotation", "hue"]}, "names hue twice"),
        ({"actions": ["zoom"]}, "'rotation', 'hue', 'shift_x' or 'shift_y'"),
        ({"turned": 3}, "turned=3 needs actions"),
        ({"turned": "all"}, "turned=all needs actions"),
        ({"actions": ["hue"], "turned": 0}, "turned"),
        ({"actions": ["rotation"], "border": "wrap"}, "'disc' or 'reflect'"),
        ({"actions": ["rotation"], "turned_scale": (0.5, 1.5)}, "whole image"),
    ],
)
def test_impossible_actions_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ViewsConfig(**fields)


@pytest.mark.parametrize("turned", ["all", 3])
def test_the_turned_views_of_an_image_are_mirrored_alike(turned: Literal["all"] | int) -> None:
    config = ViewsConfig(global_views=2, local_views=2, actions=["rotation"], turned=turned)
    rng = np.random.default_rng(0)
    images = [draw(rng, 40, 48, config, (0.5, 0.5)) for _ in range(200)]
    resolutions = config.resolutions()
    seen = [
        [crop.mirrored for r, crops in zip(resolutions, image, strict=True) if r.turned for crop in crops]
        for image in images
    ]
    assert all(len(set(mirrored)) == 1 for mirrored in seen)
    assert len({mirrored[0] for mirrored in seen}) == 4
    if turned == 3:
        assert any(image[0][0].mirrored != image[0][1].mirrored for image in images)
