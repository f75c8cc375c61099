import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv

from data_pipeline.augment import IDENTITY, PARAMETERS, AugmentConfig, apply, draw

PLAIN = {1: ([0.0], [1.0]), 3: ([0.0] * 3, [1.0] * 3)}


def images(channels: int, n: int = 4, size: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    smooth = torch.rand((n, channels, 6, 6), generator=generator)
    enlarged = torch.nn.functional.interpolate(smooth, size=(size, size - 8), mode="bicubic")
    return (enlarged.clamp(0, 1) * 255).to(torch.uint8)


def parameters(n: int = 4, **columns: object) -> torch.Tensor:
    table = torch.tensor(IDENTITY).repeat(n, 1)
    for name, values in columns.items():
        table[:, PARAMETERS.index(name)] = torch.as_tensor(values, dtype=torch.float32)
    return table


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name, values, operator",
    [
        ("brightness", [0.6, 0.9, 1.1, 1.4], tv.adjust_brightness),
        ("contrast", [0.0, 0.7, 1.2, 1.9], tv.adjust_contrast),
        ("saturation", [0.0, 0.8, 1.1, 1.7], tv.adjust_saturation),
        ("hue", [-0.5, -0.08, 0.03, 0.5], tv.adjust_hue),
        ("grey", [1, 1, 1, 1], lambda x, _: tv.rgb_to_grayscale(x, 3)),
        ("solarize", [0.0, 0.3, 0.5, 1.0], tv.solarize),
    ],
)
def test_operator_matches_torchvision(channels: int, name: str, values: list[float], operator) -> None:
    x = images(channels)
    ours = apply(x, parameters(**{name: values}), *PLAIN[channels])
    scaled = x.float() / 255
    if channels == 1 and name in ("saturation", "hue", "grey"):
        assert torch.equal(ours, scaled)
        return
    theirs = torch.stack([operator(image, value) for image, value in zip(scaled, values, strict=True)])
    assert (theirs - scaled).abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_matches_torchvision_with_the_kernel_cut_at_three_sigmas(channels: int) -> None:
    x, sigmas = images(channels), [0.1, 0.7, 1.3, 2.0]
    ours = apply(x, parameters(blur=sigmas), *PLAIN[channels])
    for image, result, sigma in zip(x.float() / 255, ours, sigmas, strict=True):
        taps = 2 * int(np.ceil(np.float32(3) * np.float32(sigma))) + 1
        torch.testing.assert_close(result, tv.gaussian_blur(image, [taps, taps], [sigma]), atol=2e-5, rtol=0)


def test_the_whole_chain_matches_torchvision_and_normalises() -> None:
    x = images(3)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    row = {"brightness": 1.2, "contrast": 0.7, "saturation": 1.15, "hue": 0.07, "blur": 1.0, "solarize": 0.5}
    y = tv.adjust_hue(
        tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(x.float() / 255, 1.2), 0.7), 1.15), 0.07
    )
    y = tv.normalize(tv.solarize(tv.gaussian_blur(y, [7, 7], [1.0]), 0.5), mean, std)
    agree = (apply(x, parameters(**row), mean, std) - y).abs().amax(1) < 1e-3
    assert agree.float().mean() > 0.999  # a pixel on the threshold may round to either side


def test_an_image_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(0)
    config = AugmentConfig(blur_probability=0.7)
    table = torch.from_numpy(np.stack([draw(rng, config) for _ in range(16)]))
    x = images(3, n=16)
    together = apply(x, table, *PLAIN[3])
    alone = torch.cat([apply(x[i : i + 1], table[i : i + 1], *PLAIN[3]) for i in range(16)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_tiny_images_and_autocast() -> None:
    x = torch.full((2, 3, 1, 1), 100, dtype=torch.uint8)
    assert torch.equal(apply(x, parameters(2, blur=2.0), *PLAIN[3]), x.float() / 255)
    x, table = images(3), parameters(blur=2.0, hue=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = apply(x, table, *PLAIN[3])
    assert inside.dtype == torch.float32 and torch.equal(inside, apply(x, table, *PLAIN[3]))


def test_draws_have_the_configured_ranges_and_probabilities() -> None:
    rng = np.random.default_rng(0)
    config = AugmentConfig()
    table = np.stack([draw(rng, config) for _ in range(4000)])
    columns = dict(zip(PARAMETERS, table.T, strict=True))
    jittered = columns["hue"] != 0
    expected = {
        "brightness": (0.6, 1.4),
        "contrast": (0.6, 1.4),
        "saturation": (0.8, 1.2),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in expected.items():
        values = columns[name][jittered]
        np.testing.assert_allclose([values.min(), values.max()], [low, high], atol=0.01)
        assert abs(values.mean() - (low + high) / 2) < 0.02
        assert (columns[name][~jittered] == IDENTITY[PARAMETERS.index(name)]).all()
    sigma = columns["blur"][columns["blur"] > 0]
    assert sigma.min() >= 0.1 - 1e-6 and sigma.max() <= 2.0
    happened = {
        0.8: jittered,
        0.2: columns["grey"] == 1,
        0.5: columns["blur"] > 0,
    }
    for probability, events in happened.items():
        assert abs(events.mean() - probability) < 0.03
    assert abs((columns["solarize"] == 0.5).mean() - 0.2) < 0.03
