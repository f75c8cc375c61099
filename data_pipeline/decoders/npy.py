"""Read uncompressed images of any number of channels in numpy's .npy format.

`numpy.load` is not used because it can unpickle objects and allocates memory before the size is checked.
"""

import io

import numpy as np
from numpy.lib import format as npy_format

from data_pipeline.decoders.pixels import Numbers, check_size, is_number


def matches(data: bytes) -> bool:
    """Return whether the bytes begin like a .npy file."""
    return data[:6] == npy_format.MAGIC_PREFIX


def size(data: bytes) -> tuple[int, int]:
    """Return height and width."""
    shape, *_ = _header(data)
    return shape[0], shape[1]


def read(data: bytes) -> Numbers:
    """Return the values (H, W, C) of an array (H, W) or (H, W, C) of real numbers; never unpickles."""
    shape, fortran_order, dtype, offset = _header(data)
    expected = offset + int(np.prod(shape)) * dtype.itemsize
    if len(data) != expected:
        raise ValueError(f"a .npy of {len(data)} bytes; by its header expected {expected}")
    pixels = np.frombuffer(data, dtype, offset=offset).reshape(shape, order="F" if fortran_order else "C")
    # Copied, so that the array is writeable and has the byte order of this machine.
    return Numbers(pixels.astype(dtype.newbyteorder("="), order="C"))


def _header(data: bytes) -> tuple[tuple[int, int, int], bool, np.dtype, int]:
    """Return shape (H, W, C), Fortran order, dtype, and the offset of the data in bytes; raise ValueError
    for others.
    """
    stream = io.BytesIO(data)
    version = npy_format.read_magic(stream)
    if version == (1, 0):
        shape, fortran_order, dtype = npy_format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran_order, dtype = npy_format.read_array_header_2_0(stream)
    else:
        raise ValueError(f"a .npy of version {version}; expected (1, 0) or (2, 0)")
    if not is_number(dtype):
        raise ValueError(f"a .npy of {dtype}; expected whole numbers or floats of up to 64 bits")
    if len(shape) not in (2, 3):
        raise ValueError(f"a .npy of shape {shape}; expected (height, width) or (height, width, channels)")
    height, width, channels = (*shape, 1)[:3]
    check_size(height, width, channels)
    return (height, width, channels), fortran_order, dtype, stream.tell()
