import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as tv
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms.v2.functional import resized_crop

from data_pipeline.decoders.decode import decode
from data_pipeline.transforms.config import ViewsConfig
from data_pipeline.transforms.views import center_view, crop_box, cut, draw
from tests.data_pipeline.encoders import encoded, npy
from tests.data_pipeline.pictures import picture, png

RATIO = (3 / 4, 4 / 3)
SMALL = ViewsConfig(global_size=32, local_size=16, local_views=3)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def views(
    data: bytes,
    config: ViewsConfig = SMALL,
    flips: tuple[float, float] = (0.5, 0.5),
    channels: int = 3,
    dtype: torch.dtype = torch.uint8,
    seed: int = 0,
) -> list[torch.Tensor]:
    out = [torch.full((r.views, channels, r.size, r.size), 77, dtype=dtype) for r in config.resolutions()]
    cut(generator(seed), data, config, flips, out)
    return out


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32), st.floats(0.01, 1), st.floats(0, 1))
def test_crops_lie_inside_any_image(height: int, width: int, seed: int, low: float, share: float) -> None:
    scale = (low, low + share * (1 - low))
    top, left, h, w = crop_box(generator(seed), height, width, scale, RATIO)
    assert top >= 0 and left >= 0 and h >= 1 and w >= 1
    assert top + h <= height and left + w <= width
    if scale[1] <= 0.4 and RATIO[0] <= width / height <= RATIO[1]:  # then the first crop drawn fits
        assert (h - 1) * (w - 1) <= scale[1] * height * width
        assert (h + 1) * (w + 1) >= scale[0] * height * width


@pytest.mark.parametrize("height, width", [(375, 500), (500, 333), (240, 1000), (30, 300)])
@pytest.mark.parametrize("scale", [(0.05, 0.3), (0.3, 1.0)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int, scale: tuple[float, float]) -> None:
    """The last two shapes also reach the crop that is taken when none fits."""
    rng, count = generator(), 2000
    ours = np.array([crop_box(rng, height, width, scale, RATIO) for _ in range(count)])
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    transform = tv.RandomResizedCrop(8, scale, RATIO)
    drawn = [transform.make_params([image]) for _ in range(count)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in drawn])
    for a, b in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(a, b, method="asymp").pvalue > 1e-3
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3], method="asymp").pvalue > 1e-3


def test_an_image_too_narrow_for_any_crop_is_cut_in_its_middle() -> None:
    assert crop_box(generator(), 300, 30, (0.9, 1.0), RATIO) == (130, 0, 40, 30)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_the_crops_drawn_resized_as_torchvision_does(channels: int) -> None:
    for data in (png(3), encoded(picture(3), "jpeg")):
        pixels = torch.from_numpy(decode(data, channels)).permute(2, 0, 1)
        drawn = draw(generator(5), 40, 48, SMALL, (0.5, 0.5))
        for made, chosen in zip(views(data, channels=channels, seed=5), drawn, strict=True):
            for view, (box, (flipped, upset)) in zip(made, chosen, strict=True):
                size = list(view.shape[1:])
                expected = resized_crop(pixels, *box, size, tv.InterpolationMode.BICUBIC, antialias=True)
                expected = expected.flip(2) if flipped else expected
                assert torch.equal(view, expected.flip(1) if upset else expected)


def test_views_depend_on_bytes_configuration_and_generator_alone() -> None:
    data = encoded(picture(1, height=300, width=400), "jpeg")
    first = views(data)
    batch = [torch.zeros(r.views, 4, 3, r.size, r.size, dtype=torch.uint8) for r in SMALL.resolutions()]
    cut(generator(), data, SMALL, (0.5, 0.5), [x[:, 2] for x in batch])
    for alone, together in zip(first, batch, strict=True):
        assert torch.equal(alone, together[:, 2]) and not together[:, [0, 1, 3]].any()
    assert not torch.equal(first[0], views(data, seed=1)[0])


def test_flips_happen_as_often_as_asked_and_mirror() -> None:
    square = picture(1, height=40, width=40)
    whole = ViewsConfig(global_views=500, global_size=40, global_scale=(1, 1), local_views=0, ratio=(1, 1))
    expected = torch.from_numpy(np.array(square)).permute(2, 0, 1)
    for flips, dims in (((0.3, 0), 2), ((0, 0.3), 1)):
        (made,) = views(encoded(square, "png"), whole, flips)
        mirrored = (made == expected.flip(dims)).all((1, 2, 3))
        assert abs(mirrored.float().mean() - 0.3) < 0.07
        assert (made[~mirrored] == expected).all()


def test_a_large_jpeg_is_decoded_smaller_with_no_visible_difference() -> None:
    texture = Image.fromarray(generator().integers(0, 256, (200, 260, 3), dtype=np.uint8))
    photo = texture.resize((1040, 800), Image.Resampling.BICUBIC)
    data = encoded(photo, "jpeg", quality=95)
    lossless = encoded(Image.fromarray(decode(data)), "png")
    coarse = ViewsConfig(global_size=64, global_scale=(0.9, 1), local_views=0)
    (smaller,), (same,) = views(data, coarse, (0, 0)), views(lossless, coarse, (0, 0))
    error = (smaller.float() - same.float()).square().mean()
    assert 0 < error < 255**2 / 10**3.5  # 35 dB
    # One view of few pixels keeps the decoder from leaving any out.
    fine = ViewsConfig(global_size=64, global_scale=(0.9, 1), local_size=64, local_scale=(0.02, 0.02))
    for made, expected in zip(views(data, fine, (0, 0)), views(lossless, fine, (0, 0)), strict=True):
        assert torch.equal(made, expected)


def test_a_view_is_rotated_about_its_centre_from_the_image_around_it() -> None:
    y, x = np.mgrid[:60, :60]
    smooth = (127 + 60 * np.sin(x / 7) + 60 * np.cos(y / 5)).astype(np.uint8)[..., None].repeat(3, 2)
    config = ViewsConfig(global_views=3, global_size=24, global_scale=(0.2, 0.3), local_views=0, ratio=(1, 1))
    angles = np.radians([90, 30, 0]).astype(np.float32)
    upright, turned = (torch.zeros(3, 3, 24, 24, dtype=torch.uint8) for _ in range(2))
    data = encoded(Image.fromarray(smooth), "png")
    cut(generator(2), data, config, (0, 0), [upright])
    cut(generator(2), data, config, (0, 0), [turned], rotations=[angles])
    assert torch.equal(turned[2], upright[2])
    difference = (turned[0].float() - upright[0].rot90(1, (1, 2)).float()).abs()
    assert difference[:, 2:-2, 2:-2].max() <= 2  # the upright view sees nothing beyond the crop
    (crop,) = draw(generator(2), 60, 60, config, (0, 0))[0][1:2]
    top, left, side, _ = crop.box
    step = side / 24
    down, right = (np.mgrid[:24, :24] - 11.5) * step
    sin, cos = np.sin(angles[1]), np.cos(angles[1])
    rows, columns = cos * down + sin * right, -sin * down + cos * right
    at_y, at_x = top + side / 2 - 0.5 + rows, left + side / 2 - 0.5 + columns
    inside = (at_y > 2) & (at_y < 57) & (at_x > 2) & (at_x < 57)
    expected = 127 + 60 * np.sin(at_x / 7) + 60 * np.cos(at_y / 5)
    assert inside.mean() > 0.8 and np.abs(turned[1][0].numpy() - expected)[inside].max() < 4


def test_resizing_is_antialiased() -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    view = center_view(checkers, 16)
    assert view.shape == (1, 16, 16) and view.dtype == torch.uint8
    assert (view.float() - 127.5).abs().max() < 8


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_depth_and_number_of_channels_is_resized_alike(dtype: torch.dtype, channels: int) -> None:
    full = torch.iinfo(dtype).max
    pixels = generator().integers(0, full, (50, 60, channels), dtype=str(dtype)[6:], endpoint=True)
    config = ViewsConfig(global_views=4, global_size=24, local_views=0)
    (made,), (drawn,) = (
        views(npy(pixels), config, (0, 0), channels, dtype),
        draw(generator(), 50, 60, config, (0, 0)),
    )
    image = torch.from_numpy(pixels.astype(np.float64) if full > 255 else pixels).permute(2, 0, 1)
    for view, crop in zip(made, drawn, strict=True):
        expected = resized_crop(image, *crop.box, [24, 24], tv.InterpolationMode.BICUBIC, antialias=True)
        # torchvision rounds 8 bits itself.
        assert (view.double() - expected.clamp(0, full)).abs().max() <= (0.6 if full > 255 else 0)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 50), (50, 1), (5, 9)])
def test_images_smaller_than_the_views_are_enlarged(height: int, width: int) -> None:
    pixels = np.full((height, width, 3), 90, dtype=np.uint8)
    for made in views(encoded(Image.fromarray(pixels), "png")):
        assert (made == 90).all()
    assert (center_view(pixels, 24) == 90).all()


def test_center_view_sees_the_middle_and_is_repeatable() -> None:
    wide = np.zeros((50, 90, 3), dtype=np.uint8)
    wide[:, 20:70] = 200
    assert torch.equal(center_view(wide, 24), torch.full((3, 24, 24), 200, dtype=torch.uint8))
    image: NDArray[np.uint8] = np.array(picture(1))
    assert torch.equal(center_view(image, 24), center_view(image, 24))


@pytest.mark.parametrize(
    "field", [{"global_scale": (0.5, 0.4)}, {"local_scale": (0.0, 0.4)}, {"global_scale": (0.5, 1.5)}]
)
def test_impossible_scales_are_refused(field: dict) -> None:
    with pytest.raises(ValueError, match=r"0 < low <= high|whole image"):
        ViewsConfig(**field)
