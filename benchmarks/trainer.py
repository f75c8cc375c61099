"""Compare LeJEPA training with stable-pretraining's trainer (MIT; only measured here): images/s and memory.

    PYTHONPATH=. python benchmarks/trainer.py

Both train the same timm ViT with a projector of the same widths on 2 × 224² + 6 × 96² views, by AdamW with
clipping and without checkpoints, in processes of the same launcher over gloo. In `whole`, each trainer uses
its own loader in the training process on the same JPEG files (generated; ours are packed): decoding, crops
and photometric augmentation, drawn from the same distributions. In `engine`, its trainer and our step get one
batch of random tensors again and again. The two take turns, and the first steps of each are not counted.
Images a second are given by the clock and by CPU time, which other work on the machine disturbs less, as
medians over runs with the range. Memory is the peak of the larger process, and its growth since before the
model was built.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

WARM = 2
VIEWS = [(224, (0.3, 1.0))] * 2 + [(96, (0.05, 0.3))] * 6
HIDDEN, WIDTH, LR, WEIGHT_DECAY, DROP_PATH = 2048, 64, 5e-4, 0.05, 0.1
MIB = 2**20


class Clock:
    """Records the end of each step, by the clock and by CPU time of this process, and the peak of memory."""

    def __init__(self) -> None:
        self.before = _peak()
        self.ends: list[tuple[float, float]] = []

    def tick(self) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))
        self.peak = _peak()

    def write(self, file: Path) -> None:
        """Write what this rank measured to FILE.<rank>."""
        values = {"ends": self.ends, "peak": self.peak, "before": self.before}
        Path(f"{file}.{os.environ['RANK']}").write_text(json.dumps(values))


def _peak() -> float:
    """Return the peak of resident memory in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(given: argparse.Namespace) -> None:
    from pretrain import train as loop
    from pretrain.assemble import build_engine
    from pretrain.config import Config
    from pretrain.engines.step import MicroBatch, train_step
    from pretrain.preflight.check import check

    dist.init_process_group("gloo")
    device = torch.device("cpu")
    config = Config.model_validate(
        {
            "name": "ours",
            "runs": str(given.folder / "runs" / given.file.name),
            "steps": given.steps,
            "log_every": 5,
            "online_probe": False,
            "data": {"path": str(given.folder / "shards"), "batch_size": given.batch, "workers": 0},
            "views": {"local_size": 96},
            "encoder": {"name": given.encoder, "kwargs": {"drop_path_rate": DROP_PATH}},
            "objective": {"kind": "lejepa", "projector": {"hidden": HIDDEN, "layers": 3, "width": WIDTH}},
            "optimizer": {"lr": LR, "weight_decay": WEIGHT_DECAY, "warmup_steps": 0},
            "engine": {"precision": given.precision, "packed": given.packed},
            "tracking": {"enabled": False},
        }
    )
    plan = check(config, dist.get_world_size())
    clock = Clock()
    if given.row == "whole":

        def timed(*arguments: Any) -> Any:
            result = train_step(*arguments)
            clock.tick()
            return result

        loop.train_step = timed
        loop.train(config, plan, device)
    else:
        from pretrain.models.drop_path import sample_keys

        engine = build_engine(config, plan, device)
        views = random_views(given.batch // dist.get_world_size())
        groups = [torch.stack(views[:2]), torch.stack(views[2:])]
        keys = sample_keys(0, 0, 0, len(views[0]), views=len(views))
        for step in range(given.steps):
            train_step(engine, MicroBatch(groups, keys), step, LR)
            clock.tick()
    clock.write(given.file)
    dist.destroy_process_group()


def theirs(given: argparse.Namespace) -> None:
    import lightning  # type: ignore[import-not-found]
    import stable_pretraining as spt  # type: ignore[import-not-found]
    from stable_pretraining.backbone import MLP  # type: ignore[import-not-found]
    from stable_pretraining.methods import LeJEPA  # type: ignore[import-not-found]

    from data import stable_pretraining_dataset

    spt.set(verbose="ERROR", cache_dir=str(given.folder / "runs" / given.file.name))
    ranks = int(os.environ["WORLD_SIZE"])
    images = given.batch // ranks
    loader: Any
    if given.row == "whole":
        dataset = stable_pretraining_dataset(given.folder / "photos", VIEWS)
        loader = torch.utils.data.DataLoader(dataset, images, shuffle=True, drop_last=True)
    else:
        batch = {"views": [{"image": x} for x in random_views(images)]}
        loader = torch.utils.data.DataLoader(Same(batch, given.steps * ranks), batch_size=None)

    class Model(LeJEPA):
        def forward(self, batch: dict[str, Any], stage: str) -> dict[str, Any]:
            views = [view["image"] for view in batch["views"]]
            output = super().forward(global_views=views[:2], local_views=views[2:])
            return {"loss": output.loss, "embedding": output.embedding}

    clock = Clock()

    class Ticks(lightning.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            clock.tick()

    width = 192 if "tiny" in given.encoder else 384
    projector = MLP(width, [HIDDEN, HIDDEN, WIDTH], "batch_norm", nn.GELU)
    model = Model(given.encoder, projector, drop_path_rate=DROP_PATH)
    model.optim = {
        "optimizer": {"type": "AdamW", "lr": LR, "weight_decay": WEIGHT_DECAY},
        "scheduler": "CosineAnnealingLR",
        "interval": "step",
    }
    trainer = lightning.Trainer(
        max_steps=given.steps,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp",
        precision={"bf16": "bf16-mixed", "fp32": "32-true"}[given.precision],
        gradient_clip_val=1.0,
        callbacks=[Ticks()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        log_every_n_steps=5,
    )
    spt.Manager(trainer=trainer, module=model, data=spt.data.DataModule(train=loader), seed=0)()
    clock.write(given.file)


class Same(torch.utils.data.Dataset[Any]):
    """One batch, again and again."""

    def __init__(self, batch: Any, count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.batch


def random_views(images: int) -> list[Tensor]:
    return [torch.randn(images, 3, size, size) for size, _ in VIEWS]


def generate(folder: Path, count: int) -> None:
    """Write JPEG files of 500 × 375, as smooth as photos, and pack them."""
    from data_pipeline.packing.pack import Options, pack

    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(count):
        octaves = [
            Image.fromarray(random.integers(0, 256, (6 * 2**o, 8 * 2**o, 3), dtype=np.uint8))
            for o in range(6)
        ]
        layers = [
            np.asarray(x.resize((500, 375), Image.Resampling.BICUBIC), float) / 2**o
            for o, x in enumerate(octaves)
        ]
        pixels = sum(layers) / sum(2.0**-o for o in range(6))
        Image.fromarray(np.asarray(pixels).clip(0, 255).astype(np.uint8)).save(
            folder / f"photos/{i:04d}.jpg", quality=90
        )
    pack(folder / "photos", folder / "shards", Options(shard_size=5 * 10**6, workers=1))


class Measured(NamedTuple):
    """Figures of one run, with the images of all its ranks."""

    seconds: list[float]
    """Seconds of each counted step, on the slowest rank."""
    cpu_seconds: list[float]
    """CPU seconds of the slowest rank in each counted step."""
    peak: float
    """Peak of the larger rank in MiB."""
    added: float
    """Part of the peak that was added after the model was begun, in MiB."""


def measure(given: argparse.Namespace, side: str, row: str, turn: int) -> Measured:
    """Run all ranks of one side once."""
    file = given.folder / f"{side}-{row}-{turn}"
    options = [
        f"--{name}={getattr(given, name)}" for name in ("encoder", "batch", "steps", "precision", "folder")
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={given.ranks}",
    ]
    command += [__file__, f"--side={side}", f"--row={row}", f"--file={file}", *options]
    command += ["--packed"] if given.packed else []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    ranks = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(given.ranks)]
    steps = [np.diff(np.array(rank["ends"])[WARM - 1 :], axis=0) for rank in ranks]
    slowest = np.max(steps, axis=0)
    larger = max(ranks, key=lambda rank: rank["peak"])
    return Measured(
        slowest[:, 0].tolist(), slowest[:, 1].tolist(), larger["peak"], larger["peak"] - larger["before"]
    )


def compare(given: argparse.Namespace, row: str) -> str:
    """Let both sides take turns and return a row of the table."""
    runs: dict[str, list[Measured]] = {"theirs": [], "ours": []}
    for turn in range(given.turns):
        for side, measured in runs.items():
            measured.append(measure(given, side, row, turn))
    cells, rates = [], {}
    for side, measured in runs.items():
        by_clock = [given.batch / statistics.median(run.seconds) for run in measured]
        by_cpu = [given.batch / statistics.median(run.cpu_seconds) / given.ranks for run in measured]
        rates[side] = statistics.median(by_clock), statistics.median(by_cpu)
        peak, added = (
            statistics.median(x) for x in ([m.peak for m in measured], [m.added for m in measured])
        )
        cells += [
            f"{rates[side][0]:.2f} ({min(by_clock):.2f}–{max(by_clock):.2f})",
            f"{rates[side][1]:.2f} ({min(by_cpu):.2f}–{max(by_cpu):.2f})",
            f"{peak:.0f} / {added:.0f}",
        ]
    clock, cpu = (ours / theirs for ours, theirs in zip(rates["ours"], rates["theirs"], strict=True))
    shown = " | ".join([*cells, f"**{clock:.2f}×**", f"**{cpu:.2f}×**"])
    return f"| {row} | {given.encoder} | {given.batch} | {given.precision} | {shown} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--encoder", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=16, help="images of all ranks together")
    parser.add_argument("--steps", type=int, default=8, help=f"of each run, of which {WARM} are not counted")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--packed", action="store_true", help="ours with engine.packed=true")
    parser.add_argument("--rows", nargs="+", choices=["whole", "engine"], default=["whole", "engine"])
    for internal in ("--side", "--row", "--folder", "--file"):
        parser.add_argument(
            internal, type=Path if internal in ("--folder", "--file") else str, help=argparse.SUPPRESS
        )
    given = parser.parse_args()
    if given.side:
        torch.set_num_threads(1)
        (ours if given.side == "ours" else theirs)(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        given.folder = Path(folder)
        generate(given.folder, count=256)
        versions = [
            f"{name} {metadata.version(name)}"
            for name in ("torch", "timm", "stable-pretraining", "lightning")
        ]
        print(f"{platform.processor() or 'CPU'}, {given.ranks} processes; {', '.join(versions)}")
        print(f"load of this machine: {os.getloadavg()[0]:.1f}", flush=True)
        for row in given.rows:
            print(compare(given, row), f"load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
