"""Index, read and verify mutated tars: `python -m tests.data_pipeline.tar_mutants SEED COUNT FOLDER`.

The process fails at another exception than UserError, a worker that crashes, a file made or changed outside
of the data set's folder, an image other than that in the tar, damage that `verify` misses, a case that takes
more than 60 s, or more than 3 GiB of address space. The tar that failed is in FOLDER/deep/er/scratch/in.
"""

import io
import os
import resource
import signal
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.dataset.index import Dataset
from data_pipeline.decoders.decode import decode
from data_pipeline.existing_tars.tar_index import Options, index
from data_pipeline.existing_tars.tar_scan import Rule
from data_pipeline.verifying.verify import verify
from isotorus.errors import UserError
from tests.data_pipeline.encoders import encoded, npy, tiff
from tests.data_pipeline.pictures import picture

RGB = picture(1)
WRITTEN = {"dataset.json", "index.npy", "shards.npy", "skipped.txt"}


class Pwned:
    """An object that makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("unpickled",)


def png_of(width: int, height: int) -> bytes:
    """Return a small PNG whose header claims this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(10**6), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[Pwned()]], dtype=object), allow_pickle=True)
    return buffer.getvalue()


IMAGES = {
    "jpg": encoded(RGB, "jpeg"),
    "jpeg": encoded(RGB.convert("L"), "jpeg"),
    "png": encoded(RGB, "png"),
    "webp": encoded(RGB, "webp"),
    "tif": tiff(np.asarray(RGB).astype(np.uint16) * 257, photometric="rgb"),
    "npy": npy(np.asarray(RGB)),
}
BOMBS = [
    png_of(60_000, 60_000),
    png_of(2**31 - 1, 1),
    png_of(0, 7),
    pickled(),
    npy(np.asarray(RGB)).replace(b"(40, 48, 3)", b"(9999999999, 9999999999, 3)"),
    b"",
]
NAMES = [
    b"../../outside.png",
    b"/outside.png",
    b"a\n\x1b[31m.png",
    b"\xff\xfe.png",
    b"n" * 100,
    b"",
    b"..",
    b"./",
    b"shard.cls",
]
SIZES = [
    b"00000000000\0",
    b"77777777777\0",
    b"-0000000001\0",
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    b"\x80" + bytes(7) + b"\x7f" * 4,
    b"0x10        ",
    b"1_000       ",
    b" " * 12,
]
RECORDS = [
    b"30 path=../../../outside.png\n\n",
    b"22 path=/outside.png\n",
    b"19 size=9999999999\n",
    b"11 size=-1\n",
    b"29 size=99999999999999999999\n",
    b"25 GNU.sparse.realsize=9\n",
    b"22 GNU.sparse.major=1\n",
    b"21 hdrcharset=BINARY\n",
    b"9999999999 path=x\n",
    b"0 a=b\n",
    b"\0" * 40,
    b"x" * 40,
    b"%d path=%s.png\n" % (200_011, b"n" * 199_990),
]


def a_tar(rng: np.random.Generator) -> bytes:
    """Return a tar file, in one of the formats, of some images with labels and other files."""
    buffer = io.BytesIO()
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    with tarfile.open(fileobj=buffer, mode="w", format=int(rng.choice(formats))) as out:
        for i, (extension, image) in enumerate(IMAGES.items()):
            content = BOMBS[rng.integers(len(BOMBS))] if rng.random() < 0.15 else image
            key = f"sämple/{'n' * 80}/{i}{'m' * 60}" if rng.random() < 0.1 else f"sämple/{i}"
            label = [b"cat", b"", b"-1", b"9" * 9, b"\xff", b"[" * 9999][rng.integers(6)]
            for suffix, data in {
                extension: content,
                "cls": label if rng.random() < 0.03 else b"%d" % i,
                "json": label if rng.random() < 0.03 else b'{"kind": "x"}',
            }.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
            if rng.random() < 0.2:
                link = tarfile.TarInfo(f"sämple/{i}n.png")
                link.type = rng.choice([tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
                link.linkname = str(rng.choice([link.name, "/etc/passwd", "../../outside.png"]))
                out.addfile(link)
    return buffer.getvalue()


def headers(data: bytes) -> list[int]:
    """Return the offsets of the blocks that may be headers."""
    return [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"] or [0]


def with_checksum(block: bytes) -> bytes:
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def with_field(rng: np.random.Generator, data: bytes) -> bytes:
    """Return the tar with a changed field of a header, whose checksum is right."""
    at = int(rng.choice(headers(data)))
    block = data[at : at + 512]
    name, size = NAMES[rng.integers(len(NAMES))], SIZES[rng.integers(len(SIZES))]
    block = [
        name.ljust(100, b"\0") + block[100:],
        block[:124] + size + block[136:],
        block[:156] + bytes([rng.choice(list(b"\x000123456789DKLMNSVXgxZ"))]) + block[157:],
        block[:257] + b"ustar  \0" + block[265:345] + b"p" * 155 + block[500:],
        block[:100] + rng.bytes(24) + block[124:],
    ][rng.integers(5)]
    return data[:at] + with_checksum(block.ljust(512, b"\0")) + data[at + 512 :]


def with_extended_header(rng: np.random.Generator, data: bytes) -> bytes:
    at = int(rng.choice(headers(data)))
    record = RECORDS[rng.integers(len(RECORDS))]
    size = len(record) if rng.random() < 0.8 else int(rng.integers(2**33))
    block = b"x".ljust(100, b"\0") + b"0" * 24 + b"%011o\0" % size + b"0" * 12 + b" " * 8
    block += bytes([rng.choice(list(b"xgLKX"))]) + bytes(100) + b"ustar\x0000"
    added = with_checksum(block.ljust(512, b"\0")) + record.ljust(-(-len(record) // 512) * 512, b"\0")
    return data[:at] + added * int(rng.integers(1, 4)) + data[at:]


def with_blocks_moved(rng: np.random.Generator, data: bytes) -> bytes:
    start, end, to = sorted((rng.integers(0, len(data) // 512 + 1, 3) * 512).tolist())
    return [
        data[:end] + data[start:],
        data[:start] + data[end:],
        data[:start] + bytes(end - start) + data[end:],
        data[:start] + data[end:to] + data[start:end] + data[to:],
        data[: int(rng.integers(len(data) + 1))],
        data + data[start:end],
    ][rng.integers(6)]


def with_bits_flipped(rng: np.random.Generator, data: bytes) -> bytes:
    mutant = bytearray(data)
    for place in rng.integers(0, max(len(data), 1), int(rng.integers(1, 20))) if data else []:
        mutant[place] ^= 1 << int(rng.integers(8))
    return bytes(mutant)


MUTATIONS = [with_field, with_extended_header, with_blocks_moved, with_bits_flipped]


def mutant_of(rng: np.random.Generator, data: bytes) -> bytes:
    for _ in range(rng.integers(1, 3)):
        data = MUTATIONS[rng.integers(len(MUTATIONS))](rng, data)
    return data


def tried(action: Callable[[], object]) -> bool:
    """Return whether the action succeeded; if not, check that the refusal has a clear reason."""
    try:
        action()
    except UserError as error:
        reason = str(error)
        assert reason and "\n" not in reason and "\x1b" not in reason and len(reason) < 2000, reason
        assert "was killed" not in reason, reason
        return False
    return True


def check_images(folder: Path, tar: Path) -> None:
    """Check a data set that was made: every image is a member of the tar and can be decoded."""
    dataset, raw = Dataset(folder), tar.read_bytes()
    for i, (_, offset, size) in enumerate(dataset.ranges(np.arange(len(dataset)))):
        assert dataset.read(i) == raw[offset : offset + size]
        assert decode(dataset.read(i), None, None).shape[:2] == (
            dataset.rows["height"][i],
            dataset.rows["width"][i],
        )
        assert dataset.key(i) is not None
    assert verify(str(folder), workers=1) == []


def same_table(file: Path, before: bytes) -> bool:
    """Return whether the table is equal, though its header may be written in another way."""
    try:
        one, other = np.load(file), np.load(io.BytesIO(before))
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    except Exception:
        return False


def check_damaged(rng: np.random.Generator, folder: Path, tar: Path) -> None:
    """Change a file after the index was made: `verify` finds it, and wrong bytes are never returned."""
    dataset = Dataset(folder)
    whole = [dataset.read(i) for i in range(len(dataset))]
    file = [tar, folder / "index.npy", folder / "shards.npy", folder / "dataset.json"][rng.integers(4)]
    before = file.read_bytes()
    file.write_bytes(
        with_bits_flipped(rng, before) if rng.random() < 0.7 else before[: rng.integers(len(before))]
    )
    changed = file.read_bytes() != before and not (file.suffix == ".npy" and same_table(file, before))
    damage: list[str] = []
    tried(lambda: damage.extend(verify(str(folder), workers=1)))
    assert bool(damage) == changed or file.suffix == ".json", (file, damage)
    opened: list[Dataset] = []
    if tried(lambda: opened.append(Dataset(folder))) and file == tar:
        for i, image in enumerate(whole):
            read: list[bytes] = []
            if tried(lambda i=i, read=read: read.append(opened[0].read(i))):
                assert read == [image]
            tried(lambda i=i: opened[0].key(i))
            tried(lambda i=i: opened[0].extension(i))
    elif opened:
        for i in range(min(len(opened[0]), 5)):
            tried(lambda i=i: opened[0].read(i))
            tried(lambda i=i: opened[0].key(i))
            tried(lambda i=i: opened[0].extension(i))
    file.write_bytes(before)


def main(seed: int, count: int, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
    rng = np.random.default_rng(seed)
    scratch = folder / "deep/er/scratch"
    (scratch / "in").mkdir(parents=True)
    os.chdir(scratch)
    tar, made = scratch / "in/x.tar", 0
    for number in range(count):
        print(number, flush=True)
        signal.alarm(60)
        data = a_tar(rng)
        tar.write_bytes(mutant_of(rng, data) if rng.random() < 0.8 else data)
        rule = Rule(label_field="kind" if rng.random() < 0.3 else None)
        dest = scratch / "set"
        if tried(lambda rule=rule, dest=dest: index([str(tar)], str(dest), Options(rule=rule))):
            made += 1
            check_images(dest, tar)
            check_damaged(rng, dest, tar)
        found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        allowed = {f"deep/er/scratch/set/{name}" for name in WRITTEN} | {"deep/er/scratch/in/x.tar"}
        assert found <= allowed and not (scratch / "unpickled").exists(), found - allowed
        for name in WRITTEN:
            (dest / name).unlink(missing_ok=True)
    print(f"{made} of {count} could be indexed")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
