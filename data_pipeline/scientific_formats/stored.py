"""Write a picture as the TIFF that a shard holds."""

import io
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from data_pipeline.decoders.tiff import GDAL_NODATA


def as_tiff(values: NDArray[Any], nodata: float | None = None) -> bytes:
    """Return an uncompressed TIFF of an image (H, W) or (H, W, C); equal values give equal bytes.

    `nodata` is the value of pixels that were not measured. It is written into a tag, so that decoding under a
    rule of `--intensity` fills these pixels.
    Deflate would make a CT slice a quarter smaller and its decoding ten times slower (0.14 ms to 1.4 ms).
    """
    buffer = io.BytesIO()
    colour = values.ndim == 3 and values.shape[2] == 3 and values.dtype in (np.uint8, np.uint16)
    tifffile.imwrite(
        buffer,
        values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values,
        photometric="rgb" if colour else "minisblack",
        planarconfig="contig" if values.ndim == 3 and values.shape[2] > 1 else None,
        metadata=None,
        extratags=[] if nodata is None else [(GDAL_NODATA, "s", 0, f"{nodata:.17g}", True)],
        software=False,
    )
    return buffer.getvalue()
