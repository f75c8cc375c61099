import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.views import Resolution, ViewsConfig, center_view, crop_box, random_view

RATIO = (3 / 4, 4 / 3)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32), st.floats(0.01, 1), st.floats(0, 1))
def test_crops_lie_inside_any_image(height: int, width: int, seed: int, low: float, share: float) -> None:
    scale = (low, low + share * (1 - low))
    top, left, h, w = crop_box(np.random.default_rng(seed), height, width, scale, RATIO)
    assert top >= 0 and left >= 0 and h >= 1 and w >= 1
    assert top + h <= height and left + w <= width


def test_crops_have_the_asked_scales_shapes_and_places() -> None:
    rng = np.random.default_rng(0)
    size = 1000
    boxes = np.array([crop_box(rng, size, size, (0.05, 0.3), RATIO) for _ in range(4000)])
    top, left, h, w = boxes.T
    area = h * w / size**2
    assert area.min() > 0.049 and area.max() < 0.301
    assert abs(area.mean() - 0.175) < 0.005  # uniform
    logs = np.log(w / h)
    assert abs(logs.mean()) < 0.02 and abs(logs.std() - np.log(4 / 3) / np.sqrt(3)) < 0.01
    for place, room in ((top, size - h), (left, size - w)):
        assert abs((place / room).mean() - 0.5) < 0.02
        assert (place == 0).any() and (place == room).any()


def test_an_image_too_narrow_for_any_crop_is_cut_in_its_middle() -> None:
    assert crop_box(np.random.default_rng(0), 300, 30, (0.9, 1.0), RATIO) == (130, 0, 40, 30)


def image(height: int = 60, width: int = 80, channels: int = 3) -> np.ndarray:
    ramp = np.linspace(0, 255, height * width * channels).reshape(height, width, channels)
    return ramp.astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_happen_as_often_as_asked_and_mirror(channels: int) -> None:
    whole = Resolution(1, 40, (1.0, 1.0))
    square = image(40, 40, channels)
    expected = torch.from_numpy(square).permute(2, 0, 1)
    rng = np.random.default_rng(0)
    assert torch.equal(random_view(rng, square, whole, (1, 1), (0, 0)), expected)
    assert torch.equal(random_view(rng, square, whole, (1, 1), (1, 0)), expected.flip(2))
    assert torch.equal(random_view(rng, square, whole, (1, 1), (0, 1)), expected.flip(1))
    views = [random_view(rng, square, whole, (1, 1), (0.3, 0)) for _ in range(1000)]
    assert abs(sum(torch.equal(view, expected.flip(2)) for view in views) / 1000 - 0.3) < 0.05


def test_resizing_is_antialiased() -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    view = center_view(checkers, 16)
    assert view.shape == (1, 16, 16) and view.dtype == torch.uint8
    assert (view.float() - 127.5).abs().max() < 8


def test_center_view_sees_the_middle_and_is_repeatable() -> None:
    wide = np.zeros((50, 90, 3), dtype=np.uint8)
    wide[:, 20:70] = 200
    assert torch.equal(center_view(wide, 24), torch.full((3, 24, 24), 200, dtype=torch.uint8))
    assert torch.equal(center_view(image(), 24), center_view(image(), 24))


@pytest.mark.parametrize(
    "field", [{"global_scale": (0.5, 0.4)}, {"local_scale": (0.0, 0.4)}, {"global_scale": (0.5, 1.5)}]
)
def test_impossible_scales_are_refused(field: dict) -> None:
    with pytest.raises(ValueError, match=r"0 < low <= high|whole image"):
        ViewsConfig(**field)
