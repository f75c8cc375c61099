"""Measure how long training waits for a checkpoint that is written in the background, and for one written at
once.

Prints a row for the table in RESULTS.md. Runs alone or under torchrun; choose a folder on the disk that holds
runs.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.checkpoint.config import CheckpointConfig
from pretrain.checkpoint.saver import Saver
from pretrain.engines import build_engine
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.methods import build_head
from pretrain.methods.config import LeJEPAConfig
from pretrain.models.config import EncoderConfig
from pretrain.models.encoder import build_encoder, timm_kwargs

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="vit_base_patch16_224")
    parser.add_argument("--engine", default="ddp")
    parser.add_argument("--folder", default=None, help="default: a temporary one here")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "RANK" in os.environ:
        dist.init_process_group()
    else:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    kwargs = timm_kwargs(EncoderConfig(name=given.encoder), 224, 3)
    engine = build_engine(
        lambda: build_encoder(given.encoder, kwargs, seed=0),
        build_head(LeJEPAConfig(), 768, n_global=2, seed=0),
        EngineConfig(kind=given.engine),
        OptimizerConfig(),
        device,
    )
    folder = [given.folder or tempfile.mkdtemp(dir=Path.cwd())]
    dist.broadcast_object_list(folder)
    parent = Path(folder[0])
    savers = {way: Saver(parent / str(way), CheckpointConfig(asynchronous=way), 0) for way in (True, False)}
    waited: dict[bool, list[float]] = {True: [], False: []}
    for step in range(1, ROUNDS + 2):
        for way, saver in savers.items():
            dist.barrier()
            began = time.perf_counter()
            saver.save(step, engine.state(), {})
            waited[way].append(time.perf_counter() - began)
            saver.wait()
            if dist.get_rank() == 0:
                shutil.rmtree(saver.checkpoints)
    # The first save allocates memory that later ones use again.
    beside, at_once = (statistics.median(waited[way][1:]) for way in (True, False))
    size = 12 * sum(p.numel() for _, p in engine.networks.online_parameters()) / 2**30
    if dist.get_rank() == 0:
        name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
        ranks = dist.get_world_size()
        launcher = "python" if ranks == 1 else f"torchrun --nproc-per-node {ranks}"
        print(
            f"| {name}, {dist.get_world_size()} × {given.engine} | torch {torch.__version__} | "
            f"{given.encoder} | {size:.2f} | {at_once:.2f} | {beside:.3f} | **{beside / at_once:.1%}** | "
            f"{waited[True][0]:.2f} | `{launcher} benchmarks/checkpoint.py --engine {given.engine}` |"
        )
        shutil.rmtree(parent)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
