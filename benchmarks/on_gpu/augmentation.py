"""Photometric augmentation: the same pixels on CPU and GPU, and how long the GPU takes.

The hue of every other image is turned by an action.
"""

import numpy as np
import torch

from benchmarks.on_gpu.report import Report, Setting
from benchmarks.on_gpu.runs import peak_bytes, seconds, start
from data_pipeline.transforms import augment, augment_torch
from isotorus.randomness import generator

GREY_LEVEL = 1 / 255


def augmentation(setting: Setting, report: Report) -> None:
    """Augment random images everywhere with equal parameters, and compare pixels on the scale of 0 to 1."""
    device = start(setting)
    count, side = setting.size((6, 24), (128, 224))
    random = generator(0)
    config = augment.AugmentConfig()
    rows = [augment.draw(random, config) for _ in range(count)]
    for row in rows[::2]:
        augment.turn_hue(row, random.uniform(0, 2 * np.pi))
    table = torch.from_numpy(np.stack(rows))
    images = torch.from_numpy(random.integers(0, 256, (count, 3, side, side), dtype=np.uint8))
    mean, std = (0.0,) * 3, (1.0,) * 3
    plain = augment_torch.apply(images, table, mean, std)
    for name, x in (("numba on the CPU", images), ("on the device", images.to(device))):
        # A pixel at the threshold of solarization may fall on either side of it.
        apart = (augment.apply(x, table, mean, std).cpu() - plain).abs()
        far = (apart > GREY_LEVEL / 4).float().mean().item()
        report.note(**{name: {"median difference": apart.median().item(), "share far off": far}})
        report.check(
            far < 1e-3, f"{name}: {far:.2%} of the pixels differ by more than a quarter of a grey level"
        )
    there = images.to(device)

    def work() -> None:
        augment_torch.apply(there, table, mean, std)

    taken = seconds(work, device, repeats=setting.size(1, 10))
    report.note(images_per_second=count / taken, peak_bytes=peak_bytes(work, device))
