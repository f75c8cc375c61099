"""Measure the search for near copies: what it finds among images in a folder, and its time and memory.

`--images FOLDER` changes some of the images (encoding, size, brightness, …). It prints for each change how
many images are found as near copies of their originals, and how many pairs are found among the originals.
`--hashes N` searches N random hashes of which every hundredth is a near copy. Each prints Markdown rows for
RESULTS.md.
"""

import argparse
import io
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from data_pipeline.dataset.near_copies.hashes import alike
from data_pipeline.dataset.near_copies.pairs import NearCopies
from data_pipeline.dataset.near_copies.thumbnails import Thumbnails, create, thumbnail, write

CHANGED = 400
"""Number of images that are changed."""


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Return the image after JPEG compression."""
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=quality)
    return Image.open(buffer)


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Return the image at another size."""
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Return the image without this share of its width at each side, at least a pixel."""
    cut = max(1, round(image.width * share))
    return image.crop((cut, cut, image.width - cut, image.height - cut))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 75": lambda image: jpeg(image, 75),
    "JPEG, quality 30": lambda image: jpeg(image, 30),
    "half the size": lambda image: scaled(image, 0.5),
    "twice the size": lambda image: scaled(image, 2),
    "30 % brighter, clipped": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "30 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "contrast × 1.3": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "gamma 0.7": lambda image: image.point(lambda value: 255 * (value / 255) ** 0.7),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "2 % cut off each side": lambda image: cropped(image, 0.02),
    "5 % cut off each side": lambda image: cropped(image, 0.05),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by a quarter": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of JPEG and PNG images")
    parser.add_argument("--most", type=int, default=20_000, help="number of images (default %(default)s)")
    parser.add_argument("--hashes", type=float, nargs="*", default=[])
    given = parser.parse_args()
    if given.images:
        accuracy(given.images, given.most)
    for count in given.hashes:
        speed(int(count))


def accuracy(folder: Path, most: int) -> None:
    """Print how many changed images are found, and how many pairs there are among the others."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".jpg", ".png"))
    files = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:most]]
    originals = [thumbnail(np.asarray(opened(each))) for each in files]
    pairs = search(originals)[0]
    possible = len(files) * (len(files) - 1) // 2
    print(f"{pairs} pairs among the {len(files)} images: {pairs / possible:.1e} of all pairs")
    for name, change in CHANGES.items():
        changed = [change(opened(each)).convert("RGB") for each in files[:CHANGED]]
        copies = search([*originals, *(thumbnail(np.asarray(each)) for each in changed)])[1]
        share = np.mean([(i, len(files) + i) in copies for i in range(len(changed))])
        print(f"| {name} | {share:.1%} |", flush=True)


def search(images: list[Thumbnails]) -> tuple[int, set[tuple[int, int]]]:
    """Return the number of pairs of near copies among thumbnails, and each copy after what it copies."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "thumbnails.npy"
        create(file, len(images))
        write(file, 0, images)
        found = NearCopies(file)
        return len(found.pairs), {(copy.of, copy.row) for copy in found.copies(of_kept=False)}


def opened(file: Path) -> Image.Image:
    """Return an image in colour."""
    return Image.open(file).convert("RGB")


def speed(count: int) -> None:
    """Print the time of a search among random hashes, and the most memory that this process has had."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 2**64, count, dtype=np.uint64)
    copies = count // 100
    codes[-copies:] = codes[:copies]
    for _ in range(3):
        codes[-copies:] ^= np.uint64(1) << random.integers(0, 64, copies, dtype=np.uint64)
    start = time.process_time()
    found = sum(len(one) for one, _ in alike(codes, np.ones(count, np.bool_), np.zeros(count, np.bool_)))
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    name = f"{platform.processor() or 'CPU'}, 1 thread"
    command = f"PYTHONPATH=. python benchmarks/images/near_copies.py --hashes {count:.0e}"
    print(
        f"| {name} | numpy {np.__version__} | {count:.0e} | {found} of {copies} | {seconds:.0f} | "
        f"{memory:.0f} | `{command}` |"
    )


if __name__ == "__main__":
    main()
