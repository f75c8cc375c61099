import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from data_pipeline.transforms import augment_cpu, augment_torch
from data_pipeline.transforms.actions import turn
from data_pipeline.transforms.augment import apply, draw, draw_instrument, draw_rotations, turn_hue
from data_pipeline.transforms.columns import GAMMA, IDENTITY, PARAMETERS
from data_pipeline.transforms.config import AugmentConfig

both_paths = pytest.mark.parametrize("path", [augment_cpu.apply, augment_torch.apply])
both_depths = pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])


def images(channels: int, n: int = 4, size: int = 40, dtype: torch.dtype = torch.uint8) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    smooth = torch.rand((n, channels, 6, 6), generator=generator)
    enlarged = torch.nn.functional.interpolate(smooth, size=(size, size - 8), mode="bicubic")
    return (enlarged.clamp(0, 1) * torch.iinfo(dtype).max).to(dtype)


def scaled(x: Tensor) -> Tensor:
    return x.float() / torch.iinfo(x.dtype).max


def parameters(n: int = 4, **columns: object) -> Tensor:
    table = torch.tensor(IDENTITY).repeat(n, 1)
    for name, values in columns.items():
        table[:, PARAMETERS.index(name)] = torch.as_tensor(values, dtype=torch.float32)
    return table


def plain(path: Callable[..., Tensor], x: Tensor, table: Tensor) -> Tensor:
    """Without normalisation."""
    return path(x, table, [0.0] * x.shape[1], [1.0] * x.shape[1])


@both_paths
@both_depths
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
def test_operator_matches_torchvision(
    path: Callable[..., Tensor],
    dtype: torch.dtype,
    channels: int,
    name: str,
    values: list[float],
    operator: Callable[..., Tensor],
) -> None:
    x = images(channels, dtype=dtype)
    ours = plain(path, x, parameters(**{name: values}))
    if channels == 1 and name in ("saturation", "hue", "grey"):
        torch.testing.assert_close(ours, scaled(x), atol=1e-6, rtol=0)
        return
    theirs = torch.stack([operator(image, value) for image, value in zip(scaled(x), values, strict=True)])
    assert (theirs - scaled(x)).abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@both_paths
@both_depths
def test_the_hue_turns_after_every_other_operator(path: Callable[..., Tensor], dtype: torch.dtype) -> None:
    x, angles = images(3, dtype=dtype), torch.tensor([0.0, 0.4, 3.0, 6.2])
    row = {"brightness": 1.3, "contrast": 0.7, "saturation": 1.15, "blur": 1.0}
    upright = plain(path, x, parameters(**row))
    turned = plain(path, x, parameters(**row, turn=angles))
    torch.testing.assert_close(turned, turn(upright, ["hue"], angles[:, None]), atol=2e-5, rtol=0)
    assert torch.equal(turned[0], upright[0]) and (turned[1:] - upright[1:]).abs().max() > 0.1
    assert turned.min() < 0  # nothing is clipped
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    normalised = path(x, parameters(**row, turn=angles), mean, std)
    torch.testing.assert_close(normalised, tv.normalize(turned, mean, std), atol=1e-4, rtol=0)
    solarized = plain(path, x, parameters(solarize=0.5))
    torch.testing.assert_close(
        plain(path, x, parameters(solarize=0.5, turn=angles)), turn(solarized, ["hue"], angles[:, None]),
        atol=2e-5, rtol=0,
    )  # fmt: skip


@both_paths
@both_depths
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_blur_matches_torchvision_with_the_kernel_cut_at_three_sigmas(
    path: Callable[..., Tensor], dtype: torch.dtype, channels: int
) -> None:
    x, sigmas = images(channels, dtype=dtype), [0.1, 0.7, 1.3, 2.0]
    ours = plain(path, x, parameters(blur=sigmas))
    for image, result, sigma in zip(scaled(x), ours, sigmas, strict=True):
        taps = 2 * int(np.ceil(np.float32(3) * np.float32(sigma))) + 1
        torch.testing.assert_close(result, tv.gaussian_blur(image, [taps, taps], [sigma]), atol=2e-5, rtol=0)


@both_paths
@both_depths
def test_the_whole_chain_matches_torchvision_and_normalises(
    path: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    x = images(3, dtype=dtype)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    row = {"brightness": 1.2, "contrast": 0.7, "saturation": 1.15, "hue": 0.07, "blur": 1.0, "solarize": 0.5}
    y = tv.adjust_contrast(tv.adjust_brightness(scaled(x), 1.2), 0.7)
    y = tv.adjust_hue(tv.adjust_saturation(y, 1.15), 0.07)
    y = tv.normalize(tv.solarize(tv.gaussian_blur(y, [7, 7], [1.0]), 0.5), mean, std)
    agree = (path(x, parameters(**row), mean, std) - y).abs().amax(1) < 1e-3
    assert agree.float().mean() > 0.999  # a pixel on the threshold may round to either side


@both_paths
@both_depths
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_channels_that_are_no_colours_keep_to_themselves(
    path: Callable[..., Tensor], dtype: torch.dtype, channels: int
) -> None:
    x = images(channels, dtype=dtype)
    row = {
        "brightness": 1.1,
        "saturation": 0.5,
        "hue": 0.3,
        "grey": 1,
        "blur": 1.3,
        "solarize": 0.5,
        "turn": 2,
    }
    table = parameters(**row)
    table[:, PARAMETERS.index("contrast")] = torch.tensor([0.6, 0.9, 1.2, 1.4])
    together = plain(path, x, table)
    for c in range(channels):
        alone = plain(path, x[:, c : c + 1], table)
        torch.testing.assert_close(together[:, c : c + 1], alone, atol=1e-6, rtol=0)


def random_table(n: int) -> Tensor:
    """Every third image is turned by the action "hue"."""
    rng = np.random.default_rng(0)
    table = np.stack([draw(rng, AugmentConfig(blur_probability=0.7)) for _ in range(n)])
    third = table[::3]
    turn_hue(third, rng.uniform(0, 2 * np.pi, len(third)).astype(np.float32))
    return torch.from_numpy(table)


@both_depths
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_path_gives_the_same_pixels(dtype: torch.dtype, channels: int) -> None:
    """The device is CUDA where there is one, which also compiles; elsewhere it is traced as one graph."""
    x, table = images(channels, n=32, dtype=dtype), random_table(32)
    mean, std = [0.5] * channels, [0.25] * channels
    ours = apply(x, table, mean, std)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = augment_torch.apply(x.to(device), table, mean, std).cpu()
    close = (ours - theirs).abs().amax(1) < 1e-4
    assert close.float().mean() > 0.9999  # a pixel on the threshold may round to either side
    if channels == 3 and device == "cpu":
        whole = torch.compile(augment_torch.colour, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(scaled(x), table), augment_torch.colour(scaled(x), table))


@both_paths
def test_an_image_does_not_depend_on_its_batch(path: Callable[..., Tensor]) -> None:
    x, table = images(3, n=16), random_table(16)
    together = plain(path, x, table)
    alone = torch.cat([plain(path, x[i : i + 1], table[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_threads_change_nothing() -> None:
    x, table, before = images(3, n=7), random_table(7), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(plain(apply, x, table))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@both_paths
def test_tiny_images_and_autocast(path: Callable[..., Tensor]) -> None:
    x = torch.full((2, 3, 1, 1), 100, dtype=torch.uint8)
    torch.testing.assert_close(plain(path, x, parameters(2, blur=2.0)), scaled(x), atol=1e-6, rtol=0)
    x, table = images(3), parameters(blur=2.0, hue=0.1, turn=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = plain(path, x, table)
    assert inside.dtype == torch.float32 and torch.equal(inside, plain(path, x, table))


@both_paths
@both_depths
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_white_images_stay_finite(
    path: Callable[..., Tensor], dtype: torch.dtype, value: float
) -> None:
    x = torch.full((16, 3, 8, 8), int(value * torch.iinfo(dtype).max), dtype=dtype)
    assert plain(path, x, random_table(16)).isfinite().all()


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


ROUNDING = """
import sys
import numpy as np, torch
from data_pipeline.transforms import augment_cpu
random = np.random.default_rng(0)
for kind in ("uint8", "uint16"):
    images = random.integers(0, np.iinfo(kind).max, (8, 3, 40, 44)).astype(kind)
    table = random.uniform(0.6, 1.4, (8, 14)) * [1, 1, 1, 0.1, 0, 1, 0.6, 1, 1, 0.1, 0.01, 1000, 0, 0]
    out = augment_cpu.apply(torch.from_numpy(images), torch.from_numpy(table), [0.4] * 3, [0.2] * 3)
    sys.stdout.write(str(hash(out.numpy().tobytes())))
"""


@pytest.mark.nightly
def test_the_process_that_compiles_rounds_like_those_that_load_the_cache(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", ROUNDING]
    first, second = (subprocess.check_output(command, env=environment, text=True) for _ in range(2))
    assert list(tmp_path.rglob("*.nbc")) and first == second


@both_paths
@both_depths
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_noise_has_the_variance_that_was_asked_for(
    path: Callable[..., Tensor], dtype: torch.dtype, channels: int
) -> None:
    """Gaussian noise has one variance everywhere, and that of counted photons grows with the value."""
    white = torch.iinfo(dtype).max
    levels = torch.tensor([0.3, 0.5, 0.7, 0.7])
    x = (levels.view(4, 1, 1, 1) * white).round().expand(4, channels, 96, 96).to(dtype)
    table = parameters(noise=[0.05, 0.0, 0.05, 0.0], shot=[0.0, 0.01, 0.01, 0.01], key=[1, 2, 3, 4])
    added = plain(path, x, table) - scaled(x)
    variances = torch.tensor([0.0025, 0.005, 0.0095, 0.007])
    torch.testing.assert_close(added.var((1, 2, 3)), variances, rtol=0.05, atol=0)
    assert added.mean((1, 2, 3)).abs().max() < 0.003
    kurtosis = (added**4).mean((1, 2, 3)) / added.var((1, 2, 3)) ** 2
    torch.testing.assert_close(kurtosis, torch.full((4,), 3.0), rtol=0, atol=0.15)  # that of a Gaussian
    apart = torch.corrcoef(added.flatten(1)).fill_diagonal_(0)
    assert apart.abs().max() < 0.06
    neighbours = torch.stack([added[0, :, :, 1:].flatten(), added[0, :, :, :-1].flatten()])
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.05


@both_depths
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_both_paths_draw_the_same_noise(dtype: torch.dtype, channels: int) -> None:
    x = images(channels, dtype=dtype)
    table = parameters(
        gamma=[0.7, 1.0, 1.3, 1.0],
        noise=[0.1, 0.0, 0.02, 0.0],
        shot=[0.0, 0.1, 0.1, 0.0],
        key=[2**24 - 1, 0, 5, 7],
        solarize=[2.0, 2.0, 0.4, 2.0],
        blur=[0.0, 1.0, 1.0, 0.0],
    )
    ours, theirs = (plain(path, x, table) for path in (augment_cpu.apply, augment_torch.apply))
    # A pixel at the threshold of solarization may fall on either side of it.
    assert ((ours - theirs).abs() > 1e-4).float().mean() < 1e-3
    torch.testing.assert_close(ours[3], scaled(x)[3])  # without noise, power and blur nothing changes


@both_paths
def test_powers_and_dropped_channels(path: Callable[..., Tensor]) -> None:
    x = images(3)
    powers = torch.tensor([0.7, 1.0, 1.4, 2.0])
    bare = scaled(x) ** powers.view(4, 1, 1, 1)
    torch.testing.assert_close(plain(path, x, parameters(gamma=powers)), bare, atol=1e-5, rtol=0)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]
    whole = path(x, parameters(), mean, std)
    dropped = path(x, parameters(drop=[0, 1, 2, 3]), mean, std)
    for i, channel in enumerate([None, 0, 1, 2]):
        for c in range(3):
            expected = torch.zeros_like(whole[i, c]) if c == channel else whole[i, c]
            assert torch.equal(dropped[i, c], expected)


def test_what_instruments_do_is_drawn_as_often_as_asked_and_apart() -> None:
    config = AugmentConfig(
        gamma_probability=0.5,
        gamma=(0.5, 2.0),
        noise_probability=0.25,
        shot_noise=0.02,
        channel_drop_probability=0.1,
    )
    rows = np.tile(np.array(IDENTITY, np.float32), (20_000, 1))
    draw_instrument(np.random.default_rng(0), rows, config, range(4))
    of = {name: rows[:, PARAMETERS.index(name)] for name in ("gamma", "noise", "shot", "key", "drop")}
    assert [np.mean(of[n] != 0) for n in ("noise", "shot", "drop")] == pytest.approx(
        [0.25, 0.25, 0.1], abs=0.01
    )
    powers = of["gamma"][of["gamma"] != 1]
    assert len(powers) / len(rows) == pytest.approx(0.5, abs=0.02)
    assert np.log2(powers).min() > -1.001 and np.log2(powers).max() < 1.001
    assert np.mean(powers > 1) == pytest.approx(0.5, abs=0.02)
    assert set(of["drop"]) == {0, 1, 2, 3, 4} and len(set(of["key"])) > 19_900
    assert np.array_equal(rows[:, :GAMMA], np.tile(np.array(IDENTITY[:GAMMA], np.float32), (20_000, 1)))
    # An image of one channel has none to spare.
    draw_instrument(np.random.default_rng(0), alone := rows * 0, config, range(1))
    assert not alone[:, PARAMETERS.index("drop")].any()


def test_channels_are_shuffled_as_often_as_asked_and_apart() -> None:
    config = AugmentConfig(noise_probability=0.5, channel_shuffle_probability=0.25)
    rows, before = (np.tile(np.array(IDENTITY, np.float32), (20_000, 1)) for _ in range(2))
    draw_instrument(np.random.default_rng(0), rows, config, range(3))
    draw_instrument(np.random.default_rng(0), before, AugmentConfig(noise_probability=0.5), range(3))
    place = PARAMETERS.index("shuffle")
    assert np.array_equal(rows[:, :place], before[:, :place]) and not before[:, place].any()
    assert np.mean(rows[:, place] != 0) == pytest.approx(0.25, abs=0.01)

    some = torch.from_numpy(rows[rows[:, place] != 0][:3000])
    some[:, :place] = torch.tensor(IDENTITY[:place])
    x = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(len(some), 3, 2, 2)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 0.2]
    whole, made = apply(x, some * 0 + torch.tensor(IDENTITY), mean, std), apply(x, some, mean, std)
    assert torch.equal(made.sort(1).values, whole.sort(1).values)  # each is normalised as in its own place
    _, counts = torch.unique(made[:, :, 0, 0], dim=0, return_counts=True)
    assert len(counts) == 6 and (counts / len(some) - 1 / 6).abs().max() < 0.03
    assert torch.equal(made, apply(x, some, mean, std))


def test_rotations_are_drawn_as_often_as_asked() -> None:
    config = AugmentConfig(rotation_probability=0.5, rotation=30)
    angles = draw_rotations(np.random.default_rng(0), 20_000, config)
    turned = np.degrees(angles[angles != 0])
    assert len(turned) / len(angles) == pytest.approx(0.5, abs=0.02)
    assert np.abs(turned).max() < 30.001
    np.testing.assert_allclose(np.quantile(turned, [0.1, 0.5, 0.9]), [-24, 0, 24], atol=1.5)
