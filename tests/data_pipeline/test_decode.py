import io

import numpy as np
import pytest
from pictures import picture, png
from PIL import Image

from data_pipeline.decode import decode


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_give_the_pixels_back(form: str) -> None:
    image = picture(1)
    pixels = decode(encoded(image, form, **({"lossless": True} if form == "webp" else {})), 3)
    np.testing.assert_array_equal(pixels, np.asarray(image))


def test_channels_are_found_or_converted() -> None:
    grey = picture(1, mode="L")
    assert decode(png(1, mode="L"), None).shape == (40, 48, 1)
    assert decode(png(1), None).shape == (40, 48, 3)
    np.testing.assert_array_equal(decode(png(1, mode="L"), 3), np.asarray(grey)[..., None].repeat(3, 2))
    np.testing.assert_array_equal(decode(png(1), 1)[..., 0], np.asarray(grey))
    for mode in ("P", "RGBA", "CMYK"):
        form = "tiff" if mode == "CMYK" else "png"
        assert decode(encoded(picture(1).convert(mode), form), None).shape == (40, 48, 3)
    assert decode(encoded(picture(1).convert("1"), "png"), None).max() == 255


@pytest.mark.parametrize("form", ["png", "tiff"])
def test_sixteen_bit_grey_is_scaled(form: str) -> None:
    values = np.array([[0, 257, 30_000, 65_535]], dtype=np.uint16)
    pixels = decode(encoded(Image.fromarray(values), form), None)
    np.testing.assert_array_equal(pixels[..., 0], [[0, 1, 117, 255]])


def test_unusable_bytes_are_refused_with_a_reason_in_one_line() -> None:
    huge = encoded(Image.new("1", (20_000, 10_000)), "png")
    floats = encoded(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "tiff")
    thin = encoded(Image.new("1", (65_600, 1)), "png")
    for data, reason in [
        (b"", "not an image"),
        (b"<html>not found</html>", "not an image"),
        (png(1)[:-300], "truncated|broken"),
        (encoded(picture(1), "jpeg")[:-200], "truncated"),
        (huge, "decompression bomb"),
        (floats, "floating-point"),
        (thin, "65535"),
    ]:
        with pytest.raises(ValueError, match=reason) as refused:
            decode(data, 3)
        assert "\n" not in str(refused.value)
