"""Numbers of any type become brightness by the stated rule, equal to the formulas in numpy."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.decoders.decode import decode, decode_valid, size
from data_pipeline.decoders.intensity import Intensity
from tests.data_pipeline.encoders import deep_png, encoded, npy, tiff
from tests.data_pipeline.pictures import picture

TYPES = ["u1", "<u2", ">u2", "<u4", ">u4", "i1", "<i2", ">i2", "<i4", ">i4", "<f4", ">f4", "<f8", ">f8"]
WINDOW = Intensity(rule="window:-20.5,90")
ENCODERS: list[Callable[[NDArray], bytes]] = [npy, tiff, lambda x: tiff(x, compression="zlib", tile=(16, 16))]


def numbers(dtype: str, channels: int = 1) -> NDArray:
    """Numbers of which some are below and some above the window, where the type has them."""
    drawn = np.random.default_rng(7).uniform(-60, 130, (19, 23, channels))
    return drawn.clip(0 if "u" in dtype else None, 120 if "1" in dtype else None).astype(dtype)


def uint16(b: NDArray) -> NDArray[np.uint16]:
    return np.rint(np.clip(b, 0, 1) * 65_535).astype(np.uint16)


def window(x: NDArray, low: float, high: float) -> NDArray[np.uint16]:
    return uint16((x.astype(np.float64) - low) / (high - low))


@pytest.mark.parametrize("encode", ENCODERS)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_of_number_is_read_by_its_value(dtype: str, encode: Callable[[NDArray], bytes]) -> None:
    x = numbers(dtype)
    data = encode(x[..., 0])
    pixels = decode(data, None, None, intensity=WINDOW)
    assert pixels.dtype == np.uint16 and 0 < (pixels < 65_535).mean() < 1
    np.testing.assert_array_equal(pixels, window(x, -20.5, 90))
    np.testing.assert_array_equal(decode(data, 3, 16, intensity=WINDOW), pixels.repeat(3, axis=2))
    assert size(data) == (19, 23)


@pytest.mark.parametrize("rule", ["percentile:0.5,99.5", "percentile:10,100", "percentile:0,50"])
def test_percentiles_are_of_the_valid_values_of_each_channel(rule: str) -> None:
    x = np.random.default_rng(0).normal([0, 1e4, -3], [1, 2e3, 1e-3], (30, 40, 3)).astype(np.float32)
    x[:4, :, 1], x[5, 5], x[6, 6, 0], x[7:9] = np.nan, np.inf, -np.inf, -9999
    x[..., 2][x[..., 2] < -3] = -9999
    percentiles = [float(p) for p in rule.partition(":")[2].split(",")]
    pixels, valid = decode_valid(npy(x), None, None, intensity=Intensity(rule=rule, nodata=-9999))
    expected_valid = np.isfinite(x) & (x != -9999)
    np.testing.assert_array_equal(valid, expected_valid)
    for channel in range(3):
        kept = x[..., channel][expected_valid[..., channel]].astype(np.float64)
        expected = window(kept, *np.percentile(kept, percentiles))
        np.testing.assert_array_equal(pixels[..., channel][expected_valid[..., channel]], expected)
    assert not pixels[~expected_valid].any()


@pytest.mark.parametrize(
    ("rule", "stretch", "q", "black"),
    [("asinh:2", 2, 8, 0), ("asinh:0.5,10", 0.5, 10, 0), ("asinh:2,8,1000.25", 2, 8, 1000.25)],
)
def test_asinh_is_that_of_lupton(rule: str, stretch: float, q: float, black: float) -> None:
    white = black + stretch * np.sinh(q) / q  # where the paper's F(x) is 1
    x = np.append(np.geomspace(1e-3, white, 200), [-5, white * 1.001, 10 * white])[None] + black
    pixels = decode(npy(x), None, None, intensity=Intensity(rule=rule))
    np.testing.assert_array_equal(pixels[..., 0], uint16(np.arcsinh(q * (x - black) / stretch) / q))
    exactly = npy(np.array([[black, white, black + stretch]]))
    ends = decode(exactly, None, None, intensity=Intensity(rule=rule)).ravel()
    assert ends.tolist()[:2] == [0, 65_535] and 0 < ends[2] < 65_535


def test_twelve_bits_in_sixteen_fill_the_range() -> None:
    x = np.random.default_rng(0).integers(0, 4096, (9, 11, 3)).astype(np.uint16)
    x[0, 0] = 0, 2048, 4095
    for data in (npy(x), tiff(x, photometric="rgb"), deep_png(x)):
        pixels = decode(data, None, None, intensity=Intensity(rule="window:0,4095"))
        np.testing.assert_array_equal(pixels, window(x, 0, 4095))
        assert pixels[0, 0].tolist() == [0, 32_776, 65_535]
        np.testing.assert_array_equal(decode(data, None, None), x)  # without a rule as ever


def test_a_tag_of_gdal_and_the_option_both_name_nodata_and_the_fill_is_seen_there() -> None:
    x = np.array([[0, -32768, 5], [10, -1, 7]], np.int16)
    tagged = tiff(x, extratags=[(42113, 2, 0, "-32768", True)])
    rule = "window:0,10"
    np.testing.assert_array_equal(
        decode(tagged, None, None, intensity=Intensity(rule=rule, nodata=7, fill=0.5))[..., 0],
        [[0, 32_768, 32_768], [65_535, 0, 32_768]],
    )
    _, valid = decode_valid(tagged, None, None, intensity=Intensity(rule=rule, nodata=7))
    assert valid is not None and valid[..., 0].tolist() == [[True, False, True], [True, True, False]]
    _, valid = decode_valid(tagged, None, None, intensity=Intensity(rule=rule, nodata=2.5))
    assert valid is not None and (~valid).sum() == 1  # no whole number is 2.5


def test_nodata_is_compared_in_the_type_of_the_file() -> None:
    lowest = np.finfo(np.float32).min  # GDAL's usual nodata, spelled as a 64-bit number
    x = np.array([[lowest, 1, 2]], np.float32)
    given = Intensity(rule="window:0,2", nodata=-3.4028234663852886e38)
    _, valid = decode_valid(npy(x), 1, None, intensity=given)
    assert valid is not None and valid.ravel().tolist() == [False, True, True]


def test_a_turned_image_and_its_valid_values_are_turned_alike() -> None:
    x = numbers("<f4")[..., 0]
    x[2, 3] = np.nan
    data = tiff(x, extratags=[(274, 3, 1, 6, True)])  # seen after a quarter turn clockwise
    pixels, valid = decode_valid(data, 3, 16, intensity=WINDOW)
    turned = np.rot90(x, -1)
    np.testing.assert_array_equal(valid, np.isfinite(turned)[..., None].repeat(3, axis=2))
    expected = np.where(np.isnan(turned), 0, window(np.nan_to_num(turned), -20.5, 90))
    np.testing.assert_array_equal(pixels[..., 1], expected)


def test_nodata_of_a_turned_png_is_turned_too() -> None:
    x = np.arange(12, dtype=np.uint16).reshape(3, 4)
    tags = Image.Exif()
    tags[274] = 6
    data = encoded(Image.fromarray(x), "png", exif=tags)
    pixels, valid = decode_valid(data, None, None, intensity=Intensity(rule="window:0,11", nodata=1))
    assert valid is not None and np.argwhere(~valid[..., 0]).tolist() == [[1, 2]]
    np.testing.assert_array_equal(pixels[..., 0], window(np.rot90(np.where(x == 1, 0, x), -1), 0, 11))


def test_a_grey_image_of_colours_is_valid_where_all_are() -> None:
    x = numbers("<f4", channels=3)
    x[0, 0, 1] = np.nan
    _, valid = decode_valid(npy(x), 1, 16, intensity=WINDOW)
    assert valid is not None and valid.shape == (19, 23, 1) and np.argwhere(~valid).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i2", "<f4"])
def test_a_tiff_whose_smallest_value_is_white_is_inverted_after_the_rule(dtype: str) -> None:
    x = numbers(dtype)
    pixels = decode(tiff(x[..., 0], photometric="miniswhite"), None, None, intensity=WINDOW)
    np.testing.assert_allclose(pixels, 65_535.0 - window(x, -20.5, 90), atol=1)
    if dtype == "u1":
        np.testing.assert_array_equal(decode(tiff(x[..., 0], photometric="miniswhite"), None, None), 255 - x)


def test_an_even_image_is_black_and_what_exceeds_equal_percentiles_is_white() -> None:
    even = Intensity(rule="percentile:5,95")
    assert not decode(npy(np.full((9, 9), 3.5)), None, None, intensity=even).any()
    spot = np.zeros((9, 9))
    spot[4, 4], spot[0, 0] = 7, -7
    pixels = decode(npy(spot), None, None, intensity=even)
    assert pixels[4, 4] == 65_535 and pixels.astype(int).sum() == 65_535


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", ["window:0,1", "percentile:0,100", "asinh:1"])
def test_huge_values_are_white_and_no_warning(rule: str) -> None:
    x = np.array([[-8e307, 0, 8e307]])
    pixels = decode(npy(x), None, None, intensity=Intensity(rule=rule)).ravel()
    assert pixels[0] == 0 and pixels[2] == 65_535


@pytest.mark.parametrize(
    ("data", "rule", "reason"),
    [
        (
            npy(np.array([[-1024, 3071]], np.int16)),
            "none",
            "int16 values from -1024 to 3071: say",
        ),
        (
            tiff(np.array([[0.5, np.nan, 1e9]], np.float32)),
            "none",
            "float32 values from 0.5 to 1000000000: say",
        ),
        (
            npy(np.array([[1 / 3, 2 / 3]])),
            "none",
            "from 0.333333 to 0.666667.*window:0.333333,0.666667$",
        ),
        (npy(np.full((2, 2), np.nan)), "none", "float64 values of which none is valid"),
        (npy(np.array([[-np.inf, np.nan]])), "window:0,1", "no valid value: all 2"),
        (npy(np.full((2, 2, 3), -9999, np.int32)), "percentile:1,99", "no valid value: all 12"),
        (encoded(picture(0), "jpeg"), "window:0,255", "a JPEG holds brightness.*leave --intensity out"),
        (npy(np.array([[1j]])), "window:0,1", "complex128"),
        (npy(np.array([[True]])), "window:0,1", "bool"),
    ],
)
def test_what_has_no_brightness_is_refused_in_one_line(data: bytes, rule: str, reason: str) -> None:
    nodata = -9999 if rule != "none" else None
    with pytest.raises(ValueError, match=reason) as refused:
        decode(data, None, None, intensity=Intensity(rule=rule, nodata=nodata))
    assert "\n" not in str(refused.value)


def test_equal_rules_are_spelled_alike() -> None:
    assert Intensity(rule="window:-160.0, 2.4e2") == Intensity(rule="window:-160,240")
    assert str(Intensity(rule="asinh:2")) == "asinh:2,8,0"
    assert str(Intensity(rule="window:0,1", nodata=-9999, fill=0.5)) == "window:0,1 --nodata=-9999 --fill=0.5"


@pytest.mark.parametrize(
    "rule",
    [
        Intensity(),
        Intensity(rule="window:-160,240.5", nodata=-3.4028234663852886e38, fill=0.25),
        Intensity(rule="asinh:1e-20,8,-3", fill=1),
    ],
)
def test_a_rule_is_read_from_its_text(rule: Intensity) -> None:
    assert Intensity.parse(str(rule)) == rule
    for wrong in ("", f"{rule} --nodat=3", f"{rule} --nodata", f"{rule} --fill=2", "window:2,1"):
        with pytest.raises(ValueError):
            Intensity.parse(wrong)
