"""Decode compressed DICOM frames with imagecodecs, where pydicom itself has no decoder.

pydicom reads uncompressed, deflated and RLE frames, and through Pillow 8-bit JPEG and grey JPEG 2000.
Lossless JPEG, JPEG-LS, 12-bit JPEG, colour JPEG 2000 and HTJ2K are decoded here. The functions have the names
and arguments that pydicom expects of a plugin.
"""

import importlib.util

from pydicom import uid
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner

_LABEL = "imagecodecs"
_CODECS = {
    uid.JPEGExtended12Bit: "jpeg8_decode",
    uid.JPEGLossless: "ljpeg_decode",
    uid.JPEGLosslessSV1: "ljpeg_decode",
    uid.JPEGLSLossless: "jpegls_decode",
    uid.JPEGLSNearLossless: "jpegls_decode",
    uid.JPEG2000Lossless: "jpeg2k_decode",
    uid.JPEG2000: "jpeg2k_decode",
    uid.HTJ2KLossless: "jpeg2k_decode",
    uid.HTJ2KLosslessRPCL: "jpeg2k_decode",
    uid.HTJ2K: "jpeg2k_decode",
}
DECODER_DEPENDENCIES = dict.fromkeys(_CODECS, ("imagecodecs",))


def is_available(syntax: str) -> bool:
    """Return whether frames of this transfer syntax can be decoded."""
    return syntax in _CODECS and importlib.util.find_spec("imagecodecs") is not None


def register() -> None:
    """Make the decoders known to pydicom; a second call does nothing."""
    for syntax in _CODECS:
        decoder = get_decoder(syntax)
        if _LABEL not in decoder.available_plugins and is_available(syntax):
            decoder.add_plugin(_LABEL, (__name__, "_decode_frame"))


def _decode_frame(source: bytes, runner: DecodeRunner) -> bytearray:
    """Return the pixels of a frame, row by row, and set in `runner` how many bits each has."""
    import imagecodecs

    pixels = getattr(imagecodecs, _CODECS[runner.transfer_syntax])(source)
    expected = (runner.rows, runner.columns)
    if pixels.shape[:2] != expected:
        raise ValueError(f"a frame of {pixels.shape[:2]} pixels in a file of {expected}")
    # The coded picture may be of fewer bytes than the file says of its pixels.
    runner.set_option("bits_allocated", pixels.dtype.itemsize * 8)
    return bytearray(pixels.tobytes())
