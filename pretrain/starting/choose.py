"""Choose the values of a recipe for a data set, an accelerator and a time, each with its reason.

The recipes that the values come from: LeJEPA's for ImageNet-1k and its minimal one for small sets
(arXiv:2511.08544), and on CPUs that of `configs/quickstart.yaml`, whose gains `studies/quickstart` measured.
"""

from typing import Any, NamedTuple

from data_pipeline.preview.symmetry import ALIKE
from pretrain.starting.found import Images, Machine

SMALL = 50_000
"""Sets with fewer images are trained by LeJEPA's minimal recipe."""
_LARGE = ((20_000_000, "vit_large_patch16_224"), (2_000_000, "vit_base_patch16_224"))
"""Numbers of images from which on a larger encoder is chosen."""
_PASSES = 100
"""Epochs of LeJEPA's published runs on ImageNet-1k."""
_SEEN, _MOST_PASSES = 5_000_000, 800
"""Samples that a run on a small set sees if there is time, and the largest number of epochs for them."""
_ENOUGH = 50
"""Number of images from which on the mean image shows whether the images have an upright position."""


class Setting(NamedTuple):
    """One value of a recipe."""

    key: str
    """Dotted name of the field."""
    value: Any
    reason: str
    """One sentence, or "" for a value that the one before it explains."""


def settings(images: Images, machine: Machine) -> list[Setting]:
    """Return all values but `steps` and what follows from it, in the order of the recipe."""
    on_cpu = machine.gpu == "cpu"
    small = images.count < SMALL
    size = _crop(images.side, on_cpu, small)
    chosen = [*_data(images, machine, on_cpu), *_views(images, size, on_cpu), *_augment(images, size)]
    if on_cpu:
        chosen += [
            Setting("encoder.name", "resnet10t", "a thin ResNet: many steps in little time on CPU cores"),
            Setting("encoder.kwargs", {"channels": [32, 64, 128, 256], "stem_width": 16}, ""),
        ]
    else:
        chosen += _vit(images, size, small)
    weight = Setting("objective.weight", 0.02, "λ, the weight of SIGReg, as LeJEPA's minimal recipe")
    if on_cpu or not small:
        weight = Setting("objective.weight", 0.05, "λ, the weight of SIGReg, as published by LeJEPA")
    width = 16 if small and not on_cpu else 64
    hidden = 512 if on_cpu else 2048
    return [
        *chosen,
        Setting("objective.kind", "lejepa", "one weight to choose, and no target network or schedule"),
        weight,
        Setting(
            "objective.sigreg",
            {"num_slices": 256 if on_cpu else 1024},
            "random directions that SIGReg looks along in a step",
        ),
        Setting("objective.projector", {"hidden": hidden, "layers": 3, "width": width}, ""),
        Setting(*_learning_rate(on_cpu, small)),
    ]


def batch(images: Images, on_cpu: bool) -> int:
    """Return the global batch size: that of the recipes, but at most a quarter of the images."""
    most = 128 if on_cpu else 256 if images.count < SMALL else 512
    return max(2, min(most, images.count // 4))


def wanted_steps(images: Images, batch_size: int) -> int:
    """Return the steps that a run would take if time did not matter."""
    passes = max(_PASSES, min(_MOST_PASSES, _SEEN // images.count))
    return passes * images.count // batch_size


def _data(images: Images, machine: Machine, on_cpu: bool) -> list[Setting]:
    batch_size = batch(images, on_cpu)
    workers = 1 if on_cpu else max(1, min(8, machine.cores // machine.gpus - 1))
    share = f"one of {machine.cores} cores" if on_cpu else f"cores: {machine.cores}, ranks: {machine.gpus}"
    remote = "long reads, as the set is remote" if images.remote else "any order is as fast on a local disk"
    return [
        Setting("data.path", images.path, f"{images.count:,} images"),
        Setting("data.batch_size", batch_size, "over all ranks, however many there are"),
        Setting("data.workers", workers, f"processes of a rank that decode; {share}"),
        Setting("data.channels", images.channels, "as the images have"),
        Setting("data.order", "windowed" if images.remote else "uniform", remote),
    ]


def _crop(side: int, on_cpu: bool, small: bool) -> int:
    """Return the size of a global view: the largest usual one that does not enlarge the images."""
    usual = (32, 64) if on_cpu else (32, 64, 96, 128) if small else (32, 64, 96, 128, 224)
    return max((size for size in usual if size <= side), default=usual[0])


def _views(images: Images, size: int, on_cpu: bool) -> list[Setting]:
    why = f"images of {images.side} pixels (median of the shorter side)"
    if size >= 224:
        return [
            Setting("views.global_size", size, why),
            Setting("views.local_size", 96, "2 global and 6 local views, as LeJEPA for ImageNet-1k"),
        ]
    found = [
        Setting("views.global_size", size, why + ("; larger views take too long on CPUs" if on_cpu else "")),
        Setting("views.global_views", 4, "4 views of one size, as LeJEPA's minimal recipe"),
        Setting("views.local_views", 0, ""),
    ]
    if on_cpu and images.side >= size * 3 // 2:
        larger = "crops enlarge what they show, so whole images are evaluated larger"
        found.append(Setting("views.whole_size", size * 3 // 2, larger))
    return found


def _augment(images: Images, size: int) -> list[Setting]:
    found = []
    share = images.mirrored["upside down"]
    if images.count >= _ENOUGH and share < ALIKE:
        why = f"the mean image has no up (difference {share:.3f} of 1); 0 if it matters what is up"
        found.append(Setting("augment.vertical_flip", 0.5, why))
    share = images.mirrored["left to right"]
    if images.count >= _ENOUGH and share >= ALIKE:
        why = f"left and right differ in the mean ({share:.3f} of 1): 0 if a side means something"
        found.append(Setting("augment.horizontal_flip", 0.5, why))
    if size < 96:
        found.append(
            Setting("augment.blur_probability", 0.0, f"views of {size} pixels have too little detail to blur")
        )
    if images.channels != 3 or images.depth == 16:
        found.append(
            Setting("augment.solarize_probability", 0.0, "the negative of a measured value means nothing")
        )
    return found


def _vit(images: Images, size: int, small: bool) -> list[Setting]:
    if not small:
        name = next((name for count, name in _LARGE if images.count >= count), "vit_small_patch16_224")
        if size >= 224:
            return [Setting("encoder.name", name, f"for {images.count:,} images")]
        patch = 8 if size >= 96 else 4
        return [
            Setting("encoder.name", name, f"for {images.count:,} images"),
            Setting("encoder.kwargs", {"patch_size": patch}, f"{(size // patch) ** 2} tokens a view"),
        ]
    why = "a ViT-S with small patches, as LeJEPA's minimal recipe"
    found = [Setting("encoder.name", "vit_small_patch8_224", why)]
    if size < 96:
        found.append(Setting("encoder.kwargs", {"patch_size": 4}, f"{(size // 4) ** 2} tokens a view"))
    return found


def _learning_rate(on_cpu: bool, small: bool) -> Setting:
    if on_cpu:
        return Setting("optimizer.lr", 4e-3, "as measured for this encoder (studies/quickstart)")
    if small:
        return Setting("optimizer.lr", 2e-3, "as LeJEPA's minimal recipe; try half of it if the loss jumps")
    return Setting("optimizer.lr", 5e-4, "as LeJEPA for ImageNet-1k")
