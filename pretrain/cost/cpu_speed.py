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

ENOUGH = 3e10
"""FLOPs of the forward pass that is timed. Small encoders are therefore timed on many images: with few
images, most of the time would be the overhead of each operation."""
SHALLOW = (1, 2)
"""Numbers of blocks of the two encoders that are timed; each further block takes as long."""


def seconds_an_image(config: Config, kwargs: dict[str, Any], flops: StepFlops, processes: int) -> float:
    """Return the seconds that `processes` on this machine take together to train on one image.

    The encoder's forward and backward passes are timed when this is called, by the CPU time of one thread, so
    that other work on the machine and waiting between threads do not count. The head, a target network and
    what is computed twice take time in proportion to their FLOPs.
    """
    images = images_timed(config, flops, processes)
    views = tuple((r.views, r.size) for r in config.views.resolutions())
    bf16 = plans_bf16(config.engine, "cpu")
    channels = config.data.channel_count
    encoder = _timed(config.encoder.name, json.dumps(kwargs), views, channels, images, bf16)
    return encoder * flops.executed / (3 * flops.encoder_forward) / cores(processes)


def images_timed(config: Config, flops: StepFlops, processes: int) -> int:
    """Return the number of images on which the encoder is timed: a micro-batch, or fewer, but 2 at least."""
    engine = config.engine.on(config.data.batch_size, processes)
    together = -(-config.data.batch_size // processes // engine.accumulation)
    return max(2, min(together, int(ENOUGH / flops.encoder_forward)))


def cores(processes: int) -> int:
    """Return how many of this machine's cores some processes keep busy."""
    return min(usable_cores(), processes * torch.get_num_threads())


@functools.cache
def _timed(
    name: str, kwargs: str, views: tuple[tuple[int, int], ...], channels: int, images: int, bf16: bool
) -> float:
    """Return the CPU seconds of the encoder's passes for one of `images` images; `kwargs` is JSON."""

    def measure(kwargs: dict[str, Any]) -> dict[str, float]:
        encoder = create(name, kwargs).train().to(memory_format=torch.channels_last)
        unfuse_attention(encoder)
        pixels = [torch.randn(count * images, channels, size, size) for count, size in views]
        seconds = []
        for _ in range(3):
            began = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                embeddings = [encoder(x).float() for x in pixels]
            torch.cat(embeddings).square().mean().backward()
            seconds.append(time.process_time() - began)
        return {"": min(seconds) / images}

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return by_depth(measure, name, json.loads(kwargs), SHALLOW)[""]
    finally:
        torch.set_num_threads(threads)
