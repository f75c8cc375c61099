"""Compare all views of a ViT-S/14 LeJEPA step (2 × 224² + 6 × 98²) in one sequence with one pass for each
size.

The two take turns at a forward and backward pass of the encoder; prints rows for the table in RESULTS.md. On
a CPU, times are CPU time of the process, which other work on the machine disturbs less than time by the
clock.
"""

import argparse
import copy
import platform
import statistics
import time

import torch

from pretrain.engines.blocks import compile_blocks
from pretrain.engines.config import EngineConfig
from pretrain.engines.networks import Networks, unfuse_attention
from pretrain.models.config import EncoderConfig
from pretrain.models.drop_path import sample_keys
from pretrain.models.encoder import build_encoder, timm_kwargs

Times = dict[bool, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--encoder", default="vit_small_patch14_dinov2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "CPU"
    for precision in ("fp32", "bf16"):
        times, difference = measure(given, precision, device)
        apart, packed = (statistics.median(times[way]) for way in (False, True))
        ranges = [f"{min(times[way]) * 1e3:.0f}–{max(times[way]) * 1e3:.0f}" for way in (False, True)]
        print(
            f"| {name}, {torch.get_num_threads()} threads | torch {torch.__version__} | {given.batch} | "
            f"{precision} | {apart * 1e3:.0f} ({ranges[0]}) | {packed * 1e3:.0f} ({ranges[1]}) | "
            f"**{apart / packed:.2f}×** | {difference:.0e} |"
        )


def measure(given: argparse.Namespace, precision: str, device: torch.device) -> tuple[Times, float]:
    """Return seconds a step with and without packing, and the largest difference of embeddings."""
    kwargs = timm_kwargs(EncoderConfig(name=given.encoder, kwargs={"drop_path_rate": 0.1}), 224, 3)
    encoder = build_encoder(given.encoder, kwargs, seed=0)
    if device.type == "cpu":
        unfuse_attention(encoder)
    n = given.batch
    views = [torch.randn(2, n, 3, 224, 224, device=device), torch.randn(6, n, 3, 98, 98, device=device)]
    keys = sample_keys(0, 0, 0, n, views=8).to(device)
    networks = {}
    for packed in (False, True):
        config = EngineConfig(precision=precision, packed=packed)
        networks[packed] = Networks(copy.deepcopy(encoder), torch.nn.Identity(), False, config, device).to(
            device
        )
        if given.compile:
            compile_blocks(networks[packed].encoder.encoder)
    embeddings: dict[bool, torch.Tensor] = {}
    times: Times = {False: [], True: []}
    for turn in range(given.turns + 1):
        for packed, network in networks.items():
            began = _now(device)
            out = network("encoder", views, keys)
            out.square().mean().backward()
            if turn:
                times[packed].append(_now(device) - began)
            embeddings[packed] = out.detach()
            network.zero_grad(set_to_none=True)
    return times, (embeddings[True] - embeddings[False]).abs().max().item()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
