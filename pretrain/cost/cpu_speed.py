"""Measure how long this machine's CPUs take to train on an image: real steps of a shallow encoder."""

import functools
import json
import time
from typing import Any

import torch

from isotorus.processes import usable_cores
from pretrain.config import Config
from pretrain.cost.accelerators import plans_bf16
from pretrain.cost.by_depth import by_depth
from pretrain.cost.flops import StepFlops
from pretrain.engines.networks import unfuse_attention
from pretrain.models.encoder import create

IMAGES = 2
SHALLOW = (1, 2)
"""Numbers of blocks of the two encoders that are timed; each further block takes as long."""


def seconds_an_image(config: Config, kwargs: dict[str, Any], flops: StepFlops, processes: int) -> float:
    """Return the seconds that `processes` on this machine take together to train on one image.

    The encoder's forward and backward passes are timed when this is called, by CPU time, so that other work
    on the machine does not count. The head, a target network and what is computed twice take time in
    proportion to their FLOPs.
    """
    views = tuple((r.views, r.size) for r in config.views.resolutions())
    bf16 = plans_bf16(config.engine, "cpu")
    encoder = _timed(config.encoder.name, json.dumps(kwargs), views, config.data.channel_count, bf16)
    return encoder * flops.executed / (3 * flops.encoder_forward) / cores(processes)


def cores(processes: int) -> int:
    """Return how many of this machine's cores some processes keep busy."""
    return min(usable_cores(), processes * torch.get_num_threads())


@functools.cache
def _timed(name: str, kwargs: str, views: tuple[tuple[int, int], ...], channels: int, bf16: bool) -> float:
    """Return the CPU seconds of the encoder's passes for one image; `kwargs` is JSON."""

    def measure(kwargs: dict[str, Any]) -> dict[str, float]:
        encoder = create(name, kwargs).train().to(memory_format=torch.channels_last)
        unfuse_attention(encoder)
        images = [torch.randn(count * IMAGES, channels, size, size) for count, size in views]
        seconds = []
        for _ in range(3):
            began = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                embeddings = [encoder(x).float() for x in images]
            torch.cat(embeddings).square().mean().backward()
            seconds.append(time.process_time() - began)
        return {"": min(seconds) / IMAGES}

    return by_depth(measure, name, json.loads(kwargs), SHALLOW)[""]
