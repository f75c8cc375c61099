"""Compare the memory that `isotorus plan` predicts with that of real steps on this machine.

Prints rows for RESULTS.md. Each case trains three steps on random images in new processes. On a GPU the peak
is that of torch's allocator. On a CPU it is the growth of rank 0's resident set since the imports, with every
larger tensor returned to the system at once (glibc would keep some). The plan's own reserve is left out of
both, and so are the pages of libraries' code that the steps are the first to read, 20 to 30 MB on CPUs.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Views are small, so that sharded parameters make up most of the memory.
SMALL_VIEWS = "data.batch_size=4 encoder.name=vit_base_patch16_224 views.global_size=112 views.local_size=48"
CASES = {
    "ViT-S/16, 8 images": "data.batch_size=8",
    "fp32": "data.batch_size=8 engine.precision=fp32",
    "selective recomputation": "data.batch_size=8 engine.activation_checkpointing=selective",
    "full recomputation": "data.batch_size=8 engine.activation_checkpointing=full",
    "4 micro-batches": "data.batch_size=16 engine.accumulation=4",
    "packed": "data.batch_size=8 engine.packed=true",
    "ViT-B/16": "data.batch_size=4 encoder.name=vit_base_patch16_224",
    "ConvNeXt-T": "data.batch_size=4 encoder.name=convnext_tiny",
    "EMA target, ResNet-18": "--config baseline_vicreg data.batch_size=16",
    "2 ranks, ddp": SMALL_VIEWS,
    "2 ranks, fsdp": SMALL_VIEWS + " engine.kind=fsdp",
    "2 ranks, fsdp, kept whole": SMALL_VIEWS + " engine.kind=fsdp engine.reshard_after_forward=false",
    "2 ranks, ZeRO-2": SMALL_VIEWS + " engine.kind=deepspeed",
    "2 ranks, ZeRO-3": SMALL_VIEWS + " engine.kind=deepspeed engine.zero_stage=3",
    "2 ranks, ZeRO-3, 2 blocks of ViT-g": "--config lejepa_vitg14 encoder.kwargs.depth=2 data.batch_size=4 "
    "views.global_size=28 views.local_size=14 views.local_views=2 engine.precision=fp32 engine.packed=false "
    "engine.kind=deepspeed engine.zero_stage=3",
    "2 ranks, ZeRO-3, 8 blocks of ViT-L": SMALL_VIEWS.replace("base", "large")
    + " encoder.kwargs.depth=8 engine.kind=deepspeed engine.zero_stage=3",
}
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", action="store_true", help="one case, in this process; prints JSON")
    parser.add_argument("--config", default="lejepa_vits16")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_intermixed_args()
    if given.one:
        found = compare(given.config, given.overrides)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
        return
    found: dict[str, float | str] = {}
    print("| case | planned, GiB | measured | plan / measured |\n|---|---|---|---|")
    for name, case in CASES.items():
        if given.only not in name:
            continue
        launcher = TORCHRUN if name.startswith("2 ranks") else []
        command = [sys.executable, *launcher, __file__, "--one", *case.split(), *given.overrides]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | MALLOC
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            said = done.stderr.splitlines() or [f"exit code {done.returncode}"]
            print(f"{name}: {next((x for x in said if 'Error: ' in x), said[-1])}", file=sys.stderr)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        planned, measured = found["planned"] / 2**30, found["measured"] / 2**30
        print(f"| {name} | {planned:.2f} | {measured:.2f} | {planned / measured:.3f} |", flush=True)
    if not found:
        sys.exit(f"no case was measured; --only takes a part of one of these names: {', '.join(CASES)}")
    print(f"\n{found['device']}, torch {found['torch']}")


def compare(recipe: str, overrides: list[str]) -> dict[str, float | str]:
    """Return the bytes that the plan predicts for a step, and those that it took."""
    import torch
    import torch.distributed as dist

    from pretrain import engines
    from pretrain.config import load_config
    from pretrain.cost.plan import Request, estimate
    from pretrain.distributed import rank, world_size
    from pretrain.engines.step import MicroBatch, train_step
    from pretrain.methods import build_head, takes_actions
    from pretrain.methods.config import Turned
    from pretrain.models.drop_path import sample_keys
    from pretrain.models.encoder import build_encoder
    from pretrain.preflight.model import check_model

    config = load_config(recipe, overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", **alone)
    model = check_model(config, world_size())
    request = Request(world_size(), "cpu" if device.type == "cpu" else "h100", 0.4, None, 1e9)
    parts = estimate(config, request).memory.parts
    if config.engine.kind == "deepspeed":
        import pretrain.engines.deepspeed  # noqa: F401
    torch.ones(512, 512, device=device) @ torch.ones(512, 512, device=device)
    baseline = _reset_peak(device)
    code = _status("RssFile")

    turned = Turned.of(config.views)
    engine = engines.build_engine(
        lambda: build_encoder(config.encoder.name, model.kwargs, config.seed),
        build_head(config.objective, model.width, config.views.global_views, config.seed, turned),
        config.engine,
        config.optimizer,
        device,
        with_target=config.objective.kind == "jepa",
    )
    images = config.data.batch_size // world_size()
    shapes = [
        (r.views, images, config.data.channel_count, r.size, r.size) for r in config.views.resolutions()
    ]
    decoded = [torch.zeros(shape, dtype=torch.uint8, device=device) for shape in shapes]
    views = [torch.randn(shape, device=device) for shape in shapes]
    count = sum(len(x) for x in views)
    keys = sample_keys(0, 0, rank() * images, images, count).to(device)
    actions = None
    if turned and takes_actions(config.objective, turned):
        actions = torch.rand(count, images, len(turned.actions), device=device)
    _reset_peak(device)  # rank 0 has held the whole encoder's weights
    for step in range(3):  # DDP builds its buckets again after the first step
        began = time.perf_counter()
        loss = train_step(engine, MicroBatch(views, keys, actions), step, lr=1e-4).parts["loss"].item()
        seconds = time.perf_counter() - began
    measured = _peak(device) - baseline
    if device.type == "cpu":
        measured -= _status("RssFile") - code
    assert len(decoded) == len(views)
    dist.destroy_process_group()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    planned = sum(size for part, size in parts.items() if part != "reserve")
    found = {"planned": planned, "measured": measured, "loss": loss, "seconds": seconds}
    return found | {"device": name, "torch": torch.__version__, **parts}


def _reset_peak(device: "torch.device") -> float:  # noqa: F821
    """Forget the peak so far and return the bytes in use now."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    gc.collect()  # frees what planning has left
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5): resets VmHWM
    return _status("VmRSS")


def _peak(device: "torch.device") -> float:  # noqa: F821
    import torch

    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
