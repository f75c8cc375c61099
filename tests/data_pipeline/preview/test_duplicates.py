"""All copies are found and nothing else, in any sets, in any order and in groups of any size."""

import hashlib
import io
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from data_pipeline.dataset.index import Dataset
from data_pipeline.packing.pack import Options, pack
from data_pipeline.preview import duplicates
from data_pipeline.preview.duplicates import THUMBNAIL, Copies, exact, near
from tests.data_pipeline.pictures import picture


def jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "jpeg")
    return buffer.getvalue()


def packed(tmp_path: Path, name: str, files: list[bytes]) -> Dataset:
    folder = tmp_path / "images" / name
    folder.mkdir(parents=True)
    for number, data in enumerate(files):
        (folder / f"{number:03d}.jpg").write_bytes(data)
    pack(folder, tmp_path / name, Options())
    return Dataset(tmp_path / name)


def groups(copies: Copies, datasets: list[Dataset]) -> set[frozenset[tuple[int, str]]]:
    members = defaultdict(set)
    for group, number, index in zip(copies.group, copies.dataset, copies.index, strict=True):
        members[int(group)].add((int(number), datasets[number].key(index)))
    return {frozenset(group) for group in members.values()}


def test_exact_copies_are_those_with_equal_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_CHUNK", 7)  # so that groups lie across the chunks of an index
    random = np.random.default_rng(0)
    files = [jpeg(int(seed)) for seed in random.integers(0, 30, 40)]
    datasets = [packed(tmp_path, "a", files[:25]), packed(tmp_path, "b", files[25:])]
    expected = defaultdict(set)
    for number, dataset in enumerate(datasets):
        for index in range(len(dataset)):
            expected[hashlib.sha256(dataset.read(index)).digest()].add((number, dataset.key(index)))
    copies, unread = exact(datasets)
    assert groups(copies, datasets) == {frozenset(group) for group in expected.values() if len(group) > 1}
    assert unread == 0
    assert len(copies.group) > copies.groups > 3


def with_checksum(data: bytes, size: int, checksum: int) -> bytes:
    """Return `data` filled up to `size` with bytes that give it the CRC-32 `checksum`."""
    padded = data + bytes(size - len(data) - 4)
    base = zlib.crc32(padded + bytes(4))
    # The CRC is affine in the last 32 bits: solve for them over GF(2), by elimination.
    rows: list[tuple[int, int]] = []
    for bit in range(32):
        effect, source = zlib.crc32(padded + (1 << bit).to_bytes(4, "little")) ^ base, 1 << bit
        for pivot, combination in rows:
            if effect ^ pivot < effect:
                effect, source = effect ^ pivot, source ^ combination
        rows = sorted([*rows, (effect, source)], reverse=True)
    wanted, suffix = checksum ^ base, 0
    for pivot, combination in rows:
        if wanted ^ pivot < wanted:
            wanted, suffix = wanted ^ pivot, suffix ^ combination
    return padded + suffix.to_bytes(4, "little")


def test_equal_checksums_are_no_proof(tmp_path: Path) -> None:
    first, second = jpeg(1), jpeg(2)
    size = max(len(first), len(second)) + 8
    files = [with_checksum(data, size, 0x1234ABCD) for data in (first, second, first)]
    dataset = packed(tmp_path, "set", files)
    assert set(dataset.rows["checksum"].tolist()) == {0x1234ABCD}
    copies, _ = exact([dataset])
    assert groups(copies, [dataset]) == {frozenset({(0, "000"), (0, "002")})}


def test_large_groups_are_found_by_checksum_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "COMPARED", 5)
    files = [jpeg(0)] * 6 + [jpeg(1)] * 3 + [jpeg(2)] * 2 + [jpeg(3)]
    dataset = packed(tmp_path, "set", files)
    copies, unread = exact([dataset])
    assert sorted(np.bincount(copies.group).tolist()) == [2, 3, 6]
    assert unread == 6


def test_nothing_is_there_twice(packed_alone: Dataset) -> None:
    copies, unread = exact([packed_alone])
    assert (copies.groups, len(copies.index), unread) == (0, 0, 0)
    assert copies.differ(copies.dataset).tolist() == []


@pytest.fixture
def packed_alone(tmp_path: Path) -> Dataset:
    return packed(tmp_path, "set", [jpeg(seed) for seed in range(3)])


def test_which_groups_differ() -> None:
    copies = Copies(np.array([0, 0, 1, 1, 1, 2, 2]), np.zeros(7, np.int64), np.arange(7))
    labels = np.array([4, 4, 1, -1, 2, -1, 3])
    assert copies.differ(labels).tolist() == [False, False, True, True, True, False, False]


def thumbnail(image: Image.Image) -> np.ndarray:
    grey = Image.fromarray(np.asarray(image.convert("L"), dtype=np.float32))
    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def alike(images: list[Image.Image]) -> list[set[int]]:
    thumbnails = np.stack([thumbnail(image) for image in images])
    copies = near(thumbnails, np.zeros(len(images), np.int64), np.arange(len(images)))
    return [set(copies.index[copies.group == group].tolist()) for group in range(copies.groups)]


def compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=50)
    return Image.open(buffer)


def test_near_copies_survive_what_is_done_to_files() -> None:
    originals = [picture(seed, 120, 160) for seed in range(40)]
    changed = [
        compressed(originals[0]),
        originals[1].resize((80, 60)),
        ImageEnhance.Brightness(originals[2]).enhance(0.8),
        originals[3].resize((131, 99)),
    ]
    assert sorted(map(sorted, alike(originals + changed))) == [[0, 40], [1, 41], [2, 42], [3, 43]]


def test_two_images_alone_can_be_near_copies() -> None:
    image = picture(5, 120, 160)
    assert alike([image, compressed(image)]) == [{0, 1}]
    assert alike([picture(5), picture(6)]) == []
    assert alike([image]) == []


def test_different_specimens_in_one_frame_are_no_copies() -> None:
    """Most of the picture is the same in all of them, as in photos of one kind of part."""
    frame = np.asarray(picture(0, 128, 128, "L"), dtype=np.int64)
    images = []
    for seed in range(60):
        own = np.asarray(picture(1000 + seed, 128, 128, "L"), dtype=np.int64)
        images.append(Image.fromarray((0.93 * frame + 0.07 * own).astype(np.uint8)))
    assert alike(images) == []
    assert alike([*images, compressed(images[7])]) == [{7, 60}]


def test_a_rare_kind_of_image_is_no_group_of_copies() -> None:
    """Photos, and among them a few dark gradients that differ from each other by a little texture."""
    gradient = np.linspace(0, 60, 128)[:, None]
    photos = [picture(seed, 128, 128, "L") for seed in range(40)]
    dark = [
        Image.fromarray((gradient + 0.03 * np.asarray(picture(1000 + seed, 128, 128, "L"))).astype(np.uint8))
        for seed in range(6)
    ]
    assert alike(photos + dark) == []


def test_blank_images_are_not_called_alike() -> None:
    blank = [Image.new("L", (40, 40), shade) for shade in (0, 0, 90, 255)]
    assert alike(blank) == []
    assert alike([*blank, picture(1), picture(2)]) == []
