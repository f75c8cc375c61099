"""Peak memory of `isotorus embed`, which should not grow with the number of images.

    PYTHONPATH=. python benchmarks/vectors/embed_memory.py FOLDER

Real images of 8×8 pixels and an encoder that is one linear map show it for 10,000 and 100,000 images. For a
million rows, the finished parts are drawn at random and put together to a file: the embedding before that has
one part in memory, for any number of images. FOLDER keeps the images, 0.2 GB, and needs 2.5 GB in between.

    PYTHONPATH=. python benchmarks/vectors/embed_memory.py FOLDER maps

does this for maps of 8×8 tokens of 192 numbers, 25 kB each: 10,000 images, and parts of 10,000 and 40,000.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import timm
from PIL import Image
from safetensors.torch import save_file

WIDTH, SIZE, SHARD = 256, 32, 50_000
KWARGS = {
    "img_size": SIZE,
    "patch_size": SIZE,
    "in_chans": 1,
    "num_classes": 0,
    "depth": 0,
    "embed_dim": WIDTH,
    "num_heads": 1,
    "class_token": False,
    "global_pool": "avg",
}


def images(folder: Path, count: int) -> Path:
    """Write tars of `count` images with a JSON file each, and index them."""
    if (folder / "set/dataset.json").exists():
        return folder / "set"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for start in range(0, count, SHARD):
        with tarfile.open(folder / f"{start // SHARD:03d}.tar", "w") as tar:
            for i in range(start, min(start + SHARD, count)):
                picture = io.BytesIO()
                Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(picture, "PNG")
                members = {
                    "png": picture.getvalue(),
                    "json": json.dumps({"age": i % 90, "site": f"s{i % 7}"}).encode(),
                }
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{i:07d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    command = [sys.executable, "-m", "data_pipeline", "index", folder, folder / "set", "--workers", "2"]
    subprocess.run(list(map(str, command)), check=True)
    return folder / "set"


def encoder(folder: Path, **changes: int) -> Path:
    """Save a ViT of one patch and no blocks, or one with other arguments."""
    folder.mkdir(exist_ok=True)
    kwargs = KWARGS | changes
    save_file(
        timm.create_model("vit_tiny_patch16_224", **kwargs).state_dict(), folder / "encoder.safetensors"
    )
    described = {
        "format": 1,
        "name": "vit_tiny_patch16_224",
        "kwargs": kwargs,
        "embedding_width": kwargs["embed_dim"],
    }
    described |= {"image_size": SIZE, "channels": 1, "mean": [0.5], "std": [0.2], "seed": 0, "step": 0}
    (folder / "encoder.json").write_text(json.dumps(described))
    return folder


def parts_alone(count: int, out: Path) -> None:
    """Write a file of vectors or a store of maps from random parts: what is left for many images."""
    from types import SimpleNamespace
    from typing import Any, cast

    from data_pipeline.dataset.sidecars import Sidecar
    from eval_suite.vectors import assemble, table
    from eval_suite.vectors.about import About, Maps
    from eval_suite.vectors.parts import Parts, joined

    random = np.random.default_rng(0)
    maps = Maps(grid=(8, 8), patch=(4, 4)) if out.suffix == ".zarr" else None
    # All tokens of a map have the same random numbers, because drawing takes memory too.
    width, tokens, kind, rows = (192, 8 * 8, np.float16, 5440) if maps else (WIDTH, 1, np.float32, 4096)
    parts = Parts(out.with_name(f"{out.name}.parts"), count, rows)
    parts.make_folder()
    for number in range(len(parts)):
        span = list(parts.span(number))
        beside = [Sidecar(f"{i:07d}", f"{i:07d}.png", {"age": i % 90, "site": f"s{i % 7}"}) for i in span]
        x = random.normal(size=(len(span), width)).astype(kind)
        parts.write(number, joined(span, beside, np.tile(x, tokens), {}))
    labels = np.arange(count, dtype=np.int32) % 3
    dataset = cast(Any, SimpleNamespace(path="none", labels=labels, groups=None, classes=["a", "b", "c"]))
    layout, tables = table.of_parts(parts, dataset)
    about = About.model_construct(rows=layout.rows, width=width, maps=maps)
    assemble.write(out, tables, about, assemble.Extras())
    parts.remove()


def main() -> None:
    home = Path(sys.argv[1]).absolute()
    home.mkdir(parents=True, exist_ok=True)
    if sys.argv[2:3] == ["parts"]:
        parts_alone(int(sys.argv[3]), home / sys.argv[4])
        return
    if sys.argv[2:] == ["maps"]:
        maps(home)
        return
    made = encoder(home / "encoder")
    embed = [sys.executable, "-m", "eval_suite", "embed", made, "--workers", "0", "--batch-size", "512"]
    print("| what | rows | peak RSS, MiB | seconds | file, MB |")
    for count in (10_000, 100_000):
        shards, out = images(home / str(count), count), home / f"{count}.parquet"
        measure("isotorus embed", count, [*embed, shards, "--out", out], out)
    for count in (100_000, 1_000_000):
        command = [sys.executable, __file__, home, "parts", count, "parts.parquet"]
        measure("parts → file", count, command, home / "parts.parquet")


def maps(home: Path) -> None:
    """Print a row for real images, which are those of the vectors, and for parts alone."""
    made, out = encoder(home / "map-encoder", patch_size=4, embed_dim=192, depth=1), home / "maps.zarr"
    embed = [sys.executable, "-m", "eval_suite", "embed", made, "--workers", "0", "--batch-size", "512"]
    print("| what | images | peak RSS, MiB | seconds | store, MB |")
    command: list[object] = [*embed, images(home / "10000", 10_000), "--out", out]
    measure("isotorus embed", 10_000, command, out)
    for count in (10_000, 40_000):
        shutil.rmtree(out)
        command = [sys.executable, __file__, home, "parts", count, out.name]
        measure("parts → store", count, command, out)
    shutil.rmtree(out)


def measure(what: str, count: int, command: list[object], out: Path) -> None:
    """Run a command that writes `out`, and print a row with the memory and the time that it took."""
    if not out.is_dir():
        out.unlink(missing_ok=True)
    start = time.monotonic()
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, f"{what} ended with {status}"
    seconds = time.monotonic() - start
    size = sum(file.stat().st_size for file in (out, *out.rglob("*")) if file.is_file()) / 1e6
    print(f"| {what} | {count:,} | {used.ru_maxrss / 1024:,.0f} | {seconds:.0f} | {size:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
