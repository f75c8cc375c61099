"""The text of a recipe for a data set and a machine: values with their reasons, and steps for the time."""

import math
import re
import textwrap
from typing import Any

import yaml

from data_pipeline.preview.symmetry import ALIKE
from isotorus.errors import UserError
from isotorus.numbers import duration
from pretrain.config import Config, from_values
from pretrain.cost.plan import Estimate, Request, estimate, nearest_fit
from pretrain.preflight.model import check_model
from pretrain.starting import choose
from pretrain.starting.choose import Setting
from pretrain.starting.found import Images, Machine

_LINE = 100
"""Longest line of the text; a reason that is longer stands above its value."""


def written(images: Images, machine: Machine, hours: float, name: str) -> tuple[str, Config]:
    """Return a recipe in YAML with a comment behind each value, and its configuration.

    Raises UserError if a batch has fewer images than there are accelerators, and if these have too little
    memory.
    """
    chosen = choose.settings(images, machine)
    batch = choose.batch(images, machine.gpu == "cpu")
    if batch < machine.gpus:
        raise UserError(
            f"--gpus {machine.gpus}: {images.count:,} images in {images.path} make batches of {batch}, less "
            f"than an image for each; give --gpus {batch} or fewer"
        )
    wanted = choose.wanted_steps(images, batch)
    config = _config(name, chosen, wanted)
    request = Request(machine.gpus, machine.gpu, None, images.count, 2e9)
    figures = estimate(config, request)
    if not figures.memory.fits:
        changes, figures = _fitting(config, request)
        chosen += changes
        config = _config(name, chosen, wanted)
    rate, source = _rate(machine, figures)
    possible = int(hours * 3600 * rate / batch)
    steps = max(10, min(wanted, _round(possible)))
    passes = steps * batch / images.count
    took = duration(steps * batch / rate)
    why = f"each image {passes:,.0f} times; about {took} at {rate:,.0f} images/s, {source}"
    if steps < wanted:
        why += f"; {wanted:,} would be better, in {duration(wanted * batch / rate)}"
    schedule = [
        Setting(
            "optimizer.warmup_steps", _round(max(steps // 50, min(100, steps // 6))), "a linear rise at first"
        ),
        Setting("checkpoint.every", _round(max(steps // 20, min(50, steps))), "steps between checkpoints"),
    ]
    head = [Setting("name", name, f"the run's folder is runs/{name}"), Setting("steps", steps, why)]
    settings = [*head, *chosen, *schedule]
    return _yaml(settings, _opening(images, machine, hours)), _config(name, [*chosen, *schedule], steps)


def _config(name: str, chosen: list[Setting], steps: int) -> Config:
    values: dict[str, Any] = {"name": name, "steps": steps}
    for setting in chosen:
        *sections, field = setting.key.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = setting.value
    return from_values(values)


def _fitting(config: Config, request: Request) -> tuple[list[Setting], Estimate]:
    """Return settings of the engine with which a run that is too large fits into memory, and its estimate."""
    fitting = nearest_fit(config, request, check_model(config, request.gpus))
    if fitting is None or any(argument.startswith("--") for argument in fitting[0]):
        more = f"; it would fit with {' '.join(fitting[0])}" if fitting else ""
        raise UserError(
            f"--gpu {request.gpu} --gpus {request.gpus}: {config.encoder.name} with a batch of "
            f"{config.data.batch_size} does not fit into memory{more}; name larger accelerators"
        )
    arguments, figures = fitting
    pairs = (argument.partition("=") for argument in arguments)
    why = "so that it fits into memory"
    return [Setting(key, yaml.safe_load(value), why) for key, _, value in pairs], figures


def _rate(machine: Machine, figures: Estimate) -> tuple[float, str]:
    """Return images per second, and the source of the figure."""
    planned = f"planned for {machine.gpus} × {machine.gpu}"
    measured = "measured now on this machine, without the loader's work"
    return figures.speed.images_per_second, measured if machine.gpu == "cpu" else planned


def _opening(images: Images, machine: Machine, hours: float) -> list[str]:
    """Return the comment at the recipe's top: what was found."""
    labels = "no labels" if not images.labelled else f"{images.labelled:,} labels of {images.classes} classes"
    groups = "" if images.groups is None else f", {images.groups:,} groups"
    lines = [
        f"{images.path}: {images.count:,} images of {images.side} pixels (median of the shorter side), "
        f"{images.channels} x {images.depth} bits a pixel; {labels}{groups}.",
        f"For {machine.gpus} × {machine.gpu} in at most {hours:g} hours. `isotorus plan` says what it costs.",
    ]
    lines += [machine.note] if machine.note else []
    alike = [name for name, share in images.mirrored.items() if share < ALIKE]
    if len(alike) == len(images.mirrored):
        lines.append(
            "The mean image is the same however it is turned by quarters. If your images have no up, an "
            "angle that turns with them can be learned: `isotorus recipes --show torus_rotation`."
        )
    if not images.labelled:
        lines.append(
            "Without labels the evaluation has rank, geometry and neighbours; --targets takes a table later."
        )
    return lines


def _yaml(settings: list[Setting], opening: list[str]) -> str:
    """Return the settings in YAML, sections in the order in which they first occur."""
    lines = [line for text in opening for line in _comment(text)]
    section = ""
    sections = list(dict.fromkeys(setting.key.rpartition(".")[0] for setting in settings))
    for setting in sorted(settings, key=lambda x: sections.index(x.key.rpartition(".")[0])):
        first, dot, field = setting.key.rpartition(".")
        if dot and first != section:
            section = first
            lines.append(f"{section}:")
        value = yaml.safe_dump(setting.value, default_flow_style=True, width=10_000, allow_unicode=True)
        value = value.removesuffix("\n").removesuffix("\n...")
        if isinstance(setting.value, float):
            value = _decimal(setting.value)
        indent = "  " if dot else ""
        text = f"{indent}{field if dot else setting.key}: {value}"
        beside = f"{text}  # {setting.reason}"
        if setting.reason and len(beside) > _LINE:
            lines += _comment(setting.reason, indent)
        lines.append(beside if setting.reason and len(beside) <= _LINE else text)
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str = "") -> list[str]:
    """Return a text as lines of a comment."""
    start = f"{indent}# "
    return textwrap.wrap(text, _LINE, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def _decimal(value: float) -> str:
    """Return a number as YAML 1.1 and 1.2 both read it: 2.0e-3, not 2e-3."""
    text = repr(value) if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"
    return re.sub(r"e([-+])0*", r"e\1", text)


def _round(steps: int) -> int:
    """Return a number with at most two digits other than 0, rounded down; at least 1."""
    unit = 10 ** max(0, math.floor(math.log10(max(steps, 1))) - 1)
    return max(1, steps // unit * unit)
