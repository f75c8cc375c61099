"""Measure what SIGReg, the monitors and exact accumulation add to a ViT-S/16 LeJEPA step (2 × 224² + 6 ×
96²).

Times are medians of parts and wholes in one run; prints a Markdown row for RESULTS.md.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from pretrain.engines import Engine, build_engine
from pretrain.engines.config import EngineConfig, OptimizerConfig
from pretrain.engines.networks import uses_bf16
from pretrain.engines.step import MicroBatch, StepResult, train_step
from pretrain.methods import build_head
from pretrain.methods.config import LeJEPAConfig
from pretrain.models.config import EncoderConfig
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import build_encoder, timm_kwargs
from pretrain.monitoring import collapse
from pretrain.monitoring.online_probe import OnlineProbe

LOG_EVERY = 10


def measure(head: nn.Module, result: StepResult) -> dict[str, float]:
    """Do what the training loop does at a logged step; its last part is done by a thread there."""
    scalars, covariance = collapse.measure(head, result, 0)
    return collapse.conclude({name: x.item() for name, x in scalars.items()}, covariance.cpu())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    device = torch.device(given.device)

    def build(**engine: object) -> Engine:
        name = "vit_small_patch16_224"
        kwargs = timm_kwargs(EncoderConfig(name=name), 224, 3)
        head = build_head(LeJEPAConfig(), 384, n_global=2, seed=0)
        config = EngineConfig(**engine)
        return build_engine(
            lambda: build_encoder(name, kwargs, seed=0), head, config, OptimizerConfig(), device
        )

    n = given.batch
    views = [torch.randn(2, n, 3, 224, 224, device=device), torch.randn(6, n, 3, 96, 96, device=device)]
    batch = MicroBatch(views, sample_keys(0, 0, 0, n, views=8).to(device))

    def timed(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(given.repeats + 1):
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[1:])

    engine = build()
    result = train_step(engine, batch, 0, 1e-4)
    head, z = engine.networks.head, result.projections.clone().requires_grad_()
    probe, labels = OnlineProbe(384, 10, device), torch.arange(n, device=device) % 10

    step = timed(lambda: train_step(engine, batch, 0, 1e-4))
    sigreg = timed(lambda: head.sigreg(z, 0).backward())
    measured = timed(lambda: measure(head, result))
    probed = timed(lambda: probe.learn(result.embeddings[:2].mean(0), labels))
    accumulating, averaging = build(accumulation=4), build(accumulation=4, accumulate="microbatch")
    exact = timed(lambda: train_step(accumulating, batch, 0, 1e-4))
    usual = timed(lambda: train_step(averaging, batch, 0, 1e-4))
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    arithmetic = "bf16" if uses_bf16(engine.config, device) else "fp32"
    print(
        f"| {name}, {torch.get_num_threads()} threads | torch {torch.__version__} | {n} | "
        f"{arithmetic} | {step * 1e3:.0f} | {sigreg / step:.2%} | "
        f"{(measured / LOG_EVERY + probed) / step:.2%} | {exact / step:.2f}× | {usual / step:.2f}× | "
        f"`python benchmarks/step.py --device {device.type} --batch {n}` |"
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
