"""Write the fixtures of this folder, with the code of commit 331757b: this script runs with no other.

    git worktree add ../before 331757b && cd ../before     # with an environment by its constraints.txt
    python ../isotorus/tests/formats/make.py ../isotorus/tests/formats

The fixtures are what that code wrote to disk: packed sets, a packing that was killed, run folders that were
killed, evaluations, a file of features and the record of a sweep. `written.json` holds what the same code
read back from the sets, and `whole/` what it logged and embedded. They are never made again: a
newer format gets a folder and a script of its own.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
import yaml
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

# isort: off
from data_pipeline import augment, info
from data_pipeline.augment import AugmentConfig
from data_pipeline.decode import decode
from data_pipeline.description import subsets
from data_pipeline.index import Dataset
from data_pipeline.loader import Loader
from data_pipeline.sources import Sources
from data_pipeline.views import ViewsConfig
# isort: on

ROOT = Path.cwd()
HEIGHT, WIDTH = 20, 26
EXIF_TURN, TURN, TURN_BACK = 0x0112, 6, 3
"""The orientation tag, "turn by 90 degrees to the right", and "turn upside down"."""


def main(destination: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder, sources = Path(scratch) / "formats", Path(scratch) / "sources"
        folder.mkdir()
        sets(folder, sources)
        killed_packing(folder)
        written: dict[str, Any] = {"sets": {}, "mixed": mixed_order(folder)}
        os.chdir(folder)
        for name in ("cells", "scans", "bands", "plain", "grown", "tars"):
            for path in subsets(f"sets/{name}") or [f"sets/{name}"]:
                written["sets"][path] = read_back(path)
        written["sets"]["sets/grown, generation 1"] = read_back("sets/grown", generation=1)
        runs(folder)
        evaluation(folder)
        sweep(folder)
        (folder / "written.json").write_text(json.dumps(written, indent=1) + "\n")
        os.chdir(ROOT)
        for path in folder.iterdir():
            if path.is_dir():
                shutil.copytree(path, destination / path.name, symlinks=True)
            else:
                shutil.copy(path, destination)


def run(*words: object, folder: Path, environment: dict[str, str] | None = None, code: int = 0) -> str:
    """Run `python WORDS` in `folder`, so that what is written holds no path of this machine."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (environment or {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, (words, done.returncode, done.stderr)
    return done.stdout


def kill_at(folder: Path, when: str) -> dict[str, str]:
    """Return an environment in which a process gets SIGKILL before it opens or renames what `when` says."""
    folder.mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def kill(event, arguments):\n"
        "    if event in ('open', 'os.rename'):\n"
        "        paths = [os.fspath(x) for x in arguments if isinstance(x, (str, os.PathLike))]\n"
        f"        if paths and ({when}):\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ.get('RANK', '0') == '0':\n"
        "    sys.addaudithook(kill)\n"
    )
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)


def deep(seed: int) -> np.ndarray:
    """A grey image (H, W) of 16 bits whose low byte matters."""
    random = np.random.default_rng(seed)
    return np.asarray(picture(seed, "L")).astype(np.uint16) * 251 + random.integers(
        0, 256, (HEIGHT, WIDTH), "u2"
    )


def save(path: Path, seed: int, mode: str = "RGB", turn: int | None = None) -> None:
    """An 8-bit image, with an orientation tag if `turn` says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    if turn and path.suffix == ".tif":
        options["tiffinfo"] = ImageFileDirectory_v2()
        options["tiffinfo"][EXIF_TURN] = turn
    elif turn:
        options["exif"] = Image.Exif()
        options["exif"][EXIF_TURN] = turn
    picture(seed, mode).save(path, **options)


def sets(folder: Path, sources: Path) -> None:
    """One packed set of each kind, in folder/sets."""
    pack = ("-m", "data_pipeline", "pack")
    for i in range(20):
        name = ("cracked", "whole")[i % 2]
        save(sources / f"cells/{name}/{i:02d}.{('jpg', 'png')[i // 2 % 2]}", i, mode=("RGB", "L")[i % 5 == 0])
    for i, suffix in enumerate(("jpg", "png", "webp", "jpg", "png", "webp")):
        save(sources / f"cells/whole/turned{i}.{suffix}", 30 + i, turn=TURN if i < 3 else TURN_BACK)
    options = ["--labels", "folder", "--val-fraction", 0.25, "--shard-size", "45KB", "--allow-duplicates"]
    run(*pack, sources / "cells", "sets/cells", *options, folder=folder)

    rows = ["file,finding,patient,age"]
    for i in range(18):
        path = sources / f"scans/{i:02d}.{('png', 'tif', 'tiff')[i % 3]}"
        path.parent.mkdir(exist_ok=True)
        if i % 3 == 0:
            Image.fromarray(deep(i)).save(path)
        elif i % 3 == 1:
            tags = [(EXIF_TURN, 3, 1, TURN, True)] if i == 4 else []
            tifffile.imwrite(path, deep(i), compression="zlib" if i % 2 else None, extratags=tags)
        else:
            save(path.with_suffix(".tif"), i, mode="L", turn={5: TURN, 8: TURN_BACK}.get(i))
            path = path.with_suffix(".tif")
        rows.append(f"{path.name},{('', 'healthy', 'ill', 'healthy', 'ill')[i % 5]},p{i // 2},{30 + i}")
    (sources / "scans.csv").write_text("\n".join(rows) + "\n")
    table = ["--labels", sources / "scans.csv", "--image-column", "file", "--label-column", "finding"]
    parts = ["--group-column", "patient", "--val-fraction", 0.2, "--test-fraction", 0.2, "--allow-duplicates"]
    run(*pack, sources / "scans", "sets/scans", *table, *parts, folder=folder)

    (sources / "bands").mkdir()
    for i in range(8):
        bands = (
            np.random.default_rng(i)
            .integers(0, (256, 65536)[i % 2], (HEIGHT, WIDTH, 5))
            .astype(("u1", "<u2")[i % 2])
        )
        if i < 5:
            np.save(sources / f"bands/{i}.npy", bands if i else np.asfortranarray(bands))
        else:
            tifffile.imwrite(sources / f"bands/{i}.tif", bands.transpose(2, 0, 1), photometric="minisblack")
    run(*pack, sources / "bands", "sets/bands", folder=folder)

    for i in range(6):
        save(sources / f"plain/day {i % 2}/photo.{i}.jpg", 50 + i)
    run(*pack, sources / "plain", "sets/plain", folder=folder)

    for i in range(8):
        save(sources / f"grown/{('cat', 'dog')[i % 2]}/{i}.jpg", 60 + i)
    run(*pack, sources / "grown", "sets/grown", "--labels", "folder", folder=folder)
    for i in range(5):
        save(sources / f"more/{('bird', 'cat')[i % 2]}/new{i}.png", 70 + i)
    run(*pack, sources / "more", "sets/grown", "--labels", "folder", "--append", folder=folder)

    (folder / "sets/tars").mkdir()
    for number in range(2):
        with tarfile.open(folder / f"sets/tars/part-{number}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for i in range(5):
                add_foreign_sample(tar, number * 5 + i)
    run("-m", "data_pipeline", "index", "sets/tars", "sets/tars", "--label-key", "finding", folder=folder)


def add_foreign_sample(tar: tarfile.TarFile, i: int) -> None:
    buffer = io.BytesIO()
    picture(80 + i).save(buffer, "jpeg")
    members = {"jpg": buffer.getvalue(), "txt": b"a caption"}
    if i % 4:
        members["json"] = json.dumps({"finding": ("ill", "healthy")[i % 2], "age": i}).encode()
    for extension, content in members.items():
        member = tarfile.TarInfo(f"./{'long-' * 22}{i // 5}/{i:03d}.{extension}")
        member.size, member.mtime = len(content), 1.5
        tar.addfile(member, io.BytesIO(content))


def killed_packing(folder: Path) -> None:
    """folder/killed: images, and a packing of them that ended by a kill at the second of its three shards."""
    for i in range(6):
        image = folder / f"killed/images/{('a', 'b')[i % 2]}/{i}.jpg"
        save(image, 90 + i)
        os.utime(image, (10**9, 10**9))  # git keeps no times, and the packing remembers them
    pack = ["-m", "data_pipeline", "pack", "images"]
    options = ["--labels", "folder", "--shard-size", "6KB", "--workers", 1]
    killer = kill_at(
        folder.parent / "kill-pack", "event == 'os.rename' and paths[-1].endswith('shard-000001.json')"
    )
    run(*pack, "set", *options, folder=folder / "killed", environment=killer, code=2)
    run(*pack, "../whole", *options, folder=folder / "killed")
    (folder / "killed/set/.packing/lock").unlink(missing_ok=True)
    sums = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted((folder / "whole").iterdir())
    }
    (folder / "killed/whole.json").write_text(json.dumps(sums, indent=1) + "\n")
    shutil.rmtree(folder / "whole")


def read_back(path: str, generation: int | None = None) -> dict[str, Any]:
    """What a set says of itself, which samples come when, and their pixels; hashes are SHA-256, 16 digits."""
    data = Dataset(path, generation=generation)
    samples = range(len(data))
    return {
        "info": json.loads(info.as_json([path], split=False)) if generation is None else {},
        "keys": [data.key(i) for i in samples],
        "extensions": [data.extension(i) for i in samples],
        "labels": data.labels.tolist(),
        "pixels": [digest(decode(data.read(i), None, None)) for i in samples],
        "order": {kind: order(Sources([data], [1.0]), kind)[2] for kind in ("uniform", "windowed")},
        "batch": first_batch(data),
    }


def digest(*arrays: np.ndarray) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(f"{array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()[:16]


def order(sources: Sources, kind: str) -> list[list[int]]:
    """Source, epoch and index of the first 50 positions, with seed 7 and batches of 6."""
    located = sources.order(kind, 6, 7).locate(np.arange(50))
    return [column.tolist() for column in located]


def mixed_order(folder: Path) -> dict[str, list[list[int]]]:
    data = [Dataset(folder / "sets/cells/train"), Dataset(folder / "sets/grown")]
    return {kind: order(Sources(data, [3.0, 1.0]), kind) for kind in ("uniform", "windowed")}


def first_batch(data: Dataset) -> dict[str, Any]:
    """The first batch of seed 7: integer crops by hash, and the augmented images by mean and deviation."""
    views = ViewsConfig(global_views=2, global_size=16, local_views=2, local_size=8)
    batches = Loader(
        Sources([data], [1.0]),
        batch_size=6,
        views=views,
        augment=AugmentConfig(),
        channels=data.channels,
        seed=7,
    )
    batch = next(iter(batches))
    assert not batch.replaced
    slots = range(len(batch.indices))
    statistics = []
    for crops, drawn in zip(batch.views, batch.parameters, strict=True):
        images = augment.apply(crops.flatten(0, 1), drawn.flatten(0, 1), *data.statistics(data.channels))
        images = images.unflatten(0, crops.shape[:2]).double()
        statistics.append([[images[:, i].mean().item(), images[:, i].std().item()] for i in slots])
    return {
        "indices": batch.indices.tolist(),
        "crops": [digest(*(crops[:, i].numpy() for crops in batch.views)) for i in slots],
        "parameters": [digest(*(drawn[:, i].numpy() for drawn in batch.parameters)) for i in slots],
        "augmented": statistics,
    }


def recipe(folder: Path, name: str, objective: dict[str, Any]) -> Path:
    values = {
        "name": name,
        "runs": "runs",
        "steps": 12,
        "log_every": 1,
        "data": {
            "path": "sets/cells/train",
            "batch_size": 6,
            "workers": 0,
            "channels": 3,
            "cache": {"folder": "cache"},
        },
        "views": {"global_size": 16, "local_views": 2, "local_size": 8},
        "encoder": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2},
        },
        "objective": objective,
        "optimizer": {"lr": 1e-3, "warmup_steps": 3},
        "engine": {"precision": "fp32", "deterministic": True},
        "checkpoint": {"every": 3, "keep_last": 1},
        "tracking": {"enabled": False},
    }
    (folder / "recipes").mkdir(exist_ok=True)
    path = folder / f"recipes/{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def runs(folder: Path) -> None:
    """folder/runs: two runs killed in the save of step 9, whose newest checkpoint is that of step 6.

    folder/whole/lejepa.jsonl is the log of the same run, undisturbed, in one process, and
    folder/whole/torus.jsonl is that of the run of two processes, continued in one.
    """
    (folder / "whole").mkdir()
    small = {"sigreg": {"num_slices": 32}}
    mlp = {"hidden": 16, "layers": 2}
    lejepa = recipe(folder, "lejepa", {"kind": "lejepa", **small, "projector": {**mlp, "width": 8}})
    torus = recipe(
        folder, "torus", {"kind": "torus", "angles": 3, "encoder_weight": 0.1, **small, "head": mlp}
    )
    train = ("-m", "pretrain", "--config")
    run(*train, lejepa, "runs=undisturbed", folder=folder)
    shutil.copy(folder / "undisturbed/lejepa/metrics.jsonl", folder / "whole/lejepa.jsonl")

    killer = kill_at(folder.parent / "kill-run", "event == 'open' and '/.partial_00000009/__0_' in paths[0]")
    run(*train, lejepa, folder=folder, environment=killer, code=-9)
    ranks = ("-m", "launch", "torchrun", "--standalone", "--nproc-per-node", 2, "--")
    run(*ranks, "--config", torus, folder=folder, environment=killer, code=128 + 9)
    for name in ("lejepa", "torus"):
        (folder / f"runs/{name}/lock").unlink()  # names this machine
        assert (folder / f"runs/{name}/checkpoints/latest").readlink() == Path("step_00000006")
        for unfinished in (folder / f"runs/{name}/checkpoints").glob(".partial_*"):
            shutil.rmtree(unfinished)  # which would double the size of this folder
    shutil.copytree(folder / "runs/torus", folder / "undisturbed/torus", symlinks=True)
    run(*train, torus, "runs=undisturbed", folder=folder)
    shutil.copy(folder / "undisturbed/torus/metrics.jsonl", folder / "whole/torus.jsonl")
    shutil.rmtree(folder / "undisturbed")


def evaluation(folder: Path) -> None:
    """The evaluations of the two runs and of a file of features, and the embeddings of the runs' images."""
    random = np.random.default_rng(3)
    labels = np.array(["left", "right"])[np.arange(60) % 2]
    x = random.normal(size=(60, 5)) + 1.5 * (labels == "left")[:, None]
    split = np.repeat(["train", "val", "test"], 20)
    np.savez(folder / "features.npz", features=x.astype(np.float32), labels=labels, split=split)
    data = ["--train", "sets/cells/train", "--val", "sets/cells/val", "--baselines", "", "--workers", 0]
    for name in ("runs/lejepa", "runs/torus", "features.npz"):
        run("-m", "eval_suite", name, *data, "--metrics", "knn,rank", folder=folder)
    for name in ("lejepa", "torus"):
        features = folder / f"runs/{name}/eval/6/features"
        for file in features.iterdir():
            with np.load(file) as stored:
                embedding = stored["embedding"]
            part = {22: "train", 4: "val"}[len(embedding)]
            np.save(folder / f"whole/{name}-{part}.npy", embedding)
    for results in folder.rglob("results.json"):
        results.write_text(results.read_text().replace(str(folder), "/home/somebody"))
        (results.parent / "report.html").unlink()


def sweep(folder: Path) -> None:
    """folder/runs/lejepa.sweep.json."""
    tracking = ["tracking.enabled=true", f"tracking.uri=sqlite:///{folder.parent}/mlflow.db"]
    run(
        "-m",
        "pretrain",
        "sweep",
        "--config",
        "recipes/lejepa.yaml",
        "--launcher",
        "true",
        *tracking,
        folder=folder,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]).resolve())
