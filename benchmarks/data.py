"""Compare the data path from shards to augmented views with usual pipelines, on one CPU core.

    python benchmarks/data.py PHOTOS.tar

PHOTOS.tar holds image files, which are packed first. Then the pipelines take turns at making batches of 2 ×
224² and 6 × 98² LeJEPA views in this process. Times are CPU time of the process, which other work on the
machine disturbs less than time by the clock. `loader` is the CPU's part where a GPU does the photometric
work. `loader + photometric` does this work too and ends in float32, as the peers do: webdataset (BSD) with
torchvision (BSD) on the same shards, and stable-pretraining (MIT) with its own transforms on the same files.
With --turned the loader is compared with itself: all of its views rotated, or two views of 96² beside the
others that are rotated, against the same views unturned.
Both peers are only measured here; stable-pretraining is left out where it cannot be imported. All pipelines
draw crops, flips, jitter, grey, blur and solarisation from the same distributions, and the peers also draw
the order of the colour jitter.
"""

import argparse
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torchvision
import webdataset
from torch.utils.data import DataLoader
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from data_pipeline.loader import Loader
from data_pipeline.packing.pack import Options, pack
from data_pipeline.sources import DataConfig
from data_pipeline.transforms import augment
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEWS = [(224, (0.3, 1.0))] * 2 + [(98, (0.05, 0.3))] * 6
BATCH = 16
PEERS = ("webdataset", "stable-pretraining")


def ours(shards: Path, photometric: bool, views: ViewsConfig | None = None) -> Iterator[object]:
    """Yield batches of uint8 views, or of float32 views, augmented and normalised."""
    sources = DataConfig(path=str(shards)).open()
    for batch in Loader(
        sources, batch_size=BATCH, views=views or ViewsConfig(), augment=AugmentConfig(), channels=3, seed=0
    ):
        if not photometric:
            yield batch
            continue
        yield [
            augment.apply(crops.flatten(0, 1), parameters.flatten(0, 1), MEAN, STD)
            for crops, parameters in zip(batch.views, batch.parameters, strict=True)
        ]


class TorchvisionViews:
    """LeJEPA's augmentation as it is usually written, on a PIL image."""

    def __init__(self, blur_taps: int) -> None:
        self.transforms = [
            v2.Compose(
                [
                    v2.RandomResizedCrop(size, scale=scale),
                    v2.RandomHorizontalFlip(),
                    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                    v2.RandomGrayscale(0.2),
                    v2.RandomApply([v2.GaussianBlur(blur_taps, (0.1, 2.0))], p=0.5),
                    v2.RandomSolarize(128, p=0.2),
                    v2.ToImage(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.Normalize(MEAN, STD),
                ]
            )
            for size, scale in VIEWS
        ]

    def __call__(self, image: object) -> list[torch.Tensor]:
        return [transform(image) for transform in self.transforms]


def turned(shards: Path) -> dict[str, Iterator[object]]:
    """Return the loader with rotated views, and with the same views unturned (the hue moves no pixels)."""
    beside: Any = {"turned": 2, "turned_size": 96}
    return {
        "all unturned": ours(shards, False),
        "all rotated": ours(shards, False, ViewsConfig(actions=["rotation"], turned="all")),
        "2 more of 96², unturned": ours(shards, False, ViewsConfig(actions=["hue"], **beside)),
        "2 more of 96², rotated": ours(shards, False, ViewsConfig(actions=["rotation"], **beside)),
    }


def with_webdataset(shards: Path, blur_taps: int) -> Iterator[object]:
    names = sorted(str(shard) for shard in shards.glob("*.tar"))
    samples = webdataset.WebDataset(names, shardshuffle=len(names), resampled=True).shuffle(200)
    samples = samples.decode("pilrgb").to_tuple("jpg;jpeg;png").map_tuple(TorchvisionViews(blur_taps))
    return iter(DataLoader(samples, batch_size=BATCH))


def stable_pretraining_dataset(photos: Path, views: list[tuple[int, tuple[float, float]]]) -> Any:
    """Return photos of a folder with stable-pretraining's own transforms; `views` are sizes and scales."""
    import stable_pretraining as spt  # type: ignore[import-not-found]
    from stable_pretraining.data import transforms as t  # type: ignore[import-not-found]

    def view(size: int, scale: tuple[float, float]) -> object:
        return t.Compose(
            t.RGB(),
            t.RandomResizedCrop((size, size), scale=scale),
            t.RandomHorizontalFlip(p=0.5),
            t.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
            t.RandomGrayscale(p=0.2),
            t.PILGaussianBlur(p=0.5),
            t.RandomSolarize(threshold=128, p=0.2),
            t.ToImage(**spt.data.static.ImageNet),
        )

    files = sorted(file for file in photos.rglob("*") if file.is_file())

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> tuple[object]:
            return (default_loader(files[i]),)

    transform = t.MultiViewTransform([view(size, scale) for size, scale in views])
    return spt.data.FromTorchDataset(Files(), names=["image"], transform=transform)


def with_stable_pretraining(photos: Path) -> Iterator[object]:
    dataset = stable_pretraining_dataset(photos, VIEWS)
    while True:
        yield from DataLoader(dataset, batch_size=BATCH, shuffle=True, drop_last=True)


def images_per_second(pipelines: dict[str, Iterator[object]], turns: int) -> dict[str, float]:
    """Return images a second of each pipeline, by the median over turns of one batch each."""
    taken: dict[str, list[float]] = {name: [] for name in pipelines}
    for turn in range(turns + 2):
        for name, batches in pipelines.items():
            start = time.process_time()
            next(batches)
            if turn >= 2:
                taken[name].append(time.process_time() - start)
    return {name: BATCH / statistics.median(seconds) for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("photos", type=Path, help="tar file of images")
    parser.add_argument("--turns", type=int, default=25, help="batches of each that are timed")
    parser.add_argument("--blur", type=int, default=23, help="taps of webdataset + torchvision's blur")
    parser.add_argument("--turned", action="store_true", help="compare turned views with unturned ones")
    arguments = parser.parse_args()
    if not arguments.photos.exists():
        parser.exit(message=f"skipped: there is no {arguments.photos}\n")
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as folder:
        photos, shards = Path(folder, "photos"), Path(folder, "shards")
        with tarfile.open(arguments.photos) as tar:
            tar.extractall(photos, filter="data")
        pack(photos, shards, Options(shard_size=5 * 10**6))
        if arguments.turned:
            for name, value in images_per_second(turned(shards), arguments.turns).items():
                print(f"{name}: {value:.0f} images/s, {1e3 / value:.2f} ms an image")
            return
        pipelines = {
            "webdataset": with_webdataset(shards, arguments.blur),
            "loader": ours(shards, photometric=False),
            "loader + photometric": ours(shards, photometric=True),
        }
        versions = [f"torch {torch.__version__}", f"torchvision {torchvision.__version__}"]
        versions += [f"{name} {metadata.version(name)}" for name in ("webdataset", "pillow")]
        try:
            stable = with_stable_pretraining(photos)
            next(stable)
            pipelines["stable-pretraining"] = stable
            versions.append(f"stable-pretraining {metadata.version('stable-pretraining')}")
        except ImportError as error:
            print(f"without stable-pretraining: {error}")
        speed = images_per_second(pipelines, arguments.turns)
    print(", ".join(versions))
    for name, value in speed.items():
        ratios = [f"{value / speed[peer]:.1f}× {peer}" for peer in PEERS if peer in speed and peer != name]
        print(f"{name}: {value:.0f} images/s, {1e3 / value:.2f} ms an image; {', '.join(ratios)}")


if __name__ == "__main__":
    main()
