"""The model card of an export: README.md, as the Hugging Face hub shows it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from isotorus import jsonl
from isotorus.errors import one_line
from pretrain.checkpoint.export import evaluated
from pretrain.checkpoint.export.command import Format
from pretrain.checkpoint.export.evaluated import Evaluation, number, plain
from pretrain.checkpoint.export.loading import code
from pretrain.checkpoint.export.trained import Trained
from pretrain.models.description import SupervisedDescription

FILE = "README.md"
_LIBRARIES = {
    "timm": "timm",
    "transformers": "transformers",
    "onnx": "onnx",
    "torch": "pytorch",
    "mlflow": "pytorch",
}
_RECIPE = ("encoder", "objective", "views", "augment", "optimizer", "average", "seed")
"""Sections of the configuration that shape the encoder; others name somebody's folders and stores."""
_FORMATS = {
    "timm": "a model folder of timm",
    "transformers": "a model folder of transformers",
    "onnx": "an ONNX file",
    "torch": "a program of torch.export",
    "mlflow": "a model of MLflow",
}


def write(
    trained: Trained, folder: Path, format: Format, called: str, licence: str | None, checked: str
) -> None:
    """Write README.md into the folder of an export.

    `called` is what the folder will be called, or what the registry calls the model.

    `licence` is that of the data, None if it was not given; `checked` says how the files were checked.
    """
    found = evaluated.newest(trained)
    parts = [
        _front_matter(trained, format),
        _what(trained, format, checked),
        _loading(trained, format, called),
        _images(trained),
        _training(trained, licence),
        *_scores(trained, found),
        _not_tested(trained, found),
    ]
    (folder / FILE).write_text("\n".join(parts))


def _front_matter(trained: Trained, format: Format) -> str:
    """Return the YAML block that the hub reads."""
    supervised = trained.described.supervised
    tasks = {"multiclass": "image-classification", "segmentation": "image-segmentation"}
    does = tasks.get(supervised.task if supervised else "", "image-feature-extraction")
    values = {
        "library_name": _LIBRARIES[format],
        "pipeline_tag": does,
        "tags": ["isotorus", "self-supervised-learning", does],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def _what(trained: Trained, format: Format, checked: str) -> str:
    described = trained.described
    parameters = sum(x.numel() for x in trained.on_meta.parameters())
    kind = _text(described.config, "objective", "kind")
    by = f" with the objective {plain(kind)}" if kind else ""
    learned = "trained with labels" if described.supervised else f"pretrained without labels{by}"
    learned = "trained on masks" if described.predicts_masks else learned
    each = "each cell of an image" if described.predicts_masks else "an image"
    weights = "averaged weights" if "average" in Path(trained.weights.file).name else "weights"
    said = (
        f"# {_heading(trained.name)}\n\n"
        f"An encoder that maps {each} to a vector of {described.embedding_width} numbers: "
        f"{plain(described.name)} with {parameters:,} parameters, {learned} by "
        f"Isotorus. These are the {weights} of step {described.step:,}, as {_FORMATS[format]}.\n"
    )
    if described.supervised:
        said += f"\n{_predicts(described.supervised, format)}\n"
    return said + (f"\n{checked[0].upper()}{checked[1:]}.\n" if checked else "")


def _predicts(supervised: SupervisedDescription, format: Format) -> str:
    """Say what the last layer gives."""
    count = len(supervised.names)
    names = ", ".join(plain(name) for name in supervised.names[:20]) + (", …" if count > 20 else "")
    gives = {
        "multiclass": f"It has a classifier, whose outputs are the logits of {count} classes: {names}",
        "multilabel": f"It has a classifier, whose outputs are the logits of {count} labels: {names}",
        "segmentation": "It has a linear layer on the cells, whose outputs are upsampled to the logits of "
        f"{count} classes for each pixel, (N, {count}, height, width): {names}",
        "regression": f"It has a last layer, whose {count} outputs are numbers in their units: {names}",
    }[supervised.task]
    alone = " With `num_classes=0`, `timm.create_model` gives the vector instead." if format == "timm" else ""
    return f"{gives}.{alone}"


def _loading(trained: Trained, format: Format, called: str) -> str:
    text = code(format, trained.described, _plain_name(called))
    if trained.described.supervised:
        for old, new in (("encoder = ", "model = "), ("(encoder)", "(model)"), ("= encoder(", "= model(")):
            text = text.replace(old, new)
        text = text.replace("vectors", "outputs")
    where = "With mlflow and torch:" if format == "mlflow" else "From the folder above this one:"
    return f"## Load it\n\n{where}\n\n```python\n{text}```\n"


def _images(trained: Trained) -> str:
    described = trained.described
    colours = {1: "grey", 3: "RGB"}.get(described.channels, "as in the files")
    colours = ", ".join(map(plain, described.channel_names or [])) or colours
    depth = {8: "8 bits a channel", 16: "16 bits a channel", None: "bits a channel not recorded"}
    rows = {
        "size": f"{described.image_size} × {described.image_size} pixels: the "
        f"{described.seen}, resized (bicubic, antialiased)",
        "channels": f"{described.channels} ({colours}), {depth[described.depth]}",
        "scale": "0 is black and 1 is white: 8-bit values are divided by 255, 16-bit values by 65535",
        **_brightness(described.intensity),
        "mean": ", ".join(f"{x:.6g}" for x in described.mean),
        "standard deviation": ", ".join(f"{x:.6g}" for x in described.std),
        "orientation": "upright: images are turned by their orientation tag (EXIF)",
    }
    return f"## Images\n\n{_table(rows)}"


def _brightness(rules: list[str]) -> dict[str, str]:
    """Return a row about how numbers became brightness; none if the largest value of the type is white."""
    if rules == ["none"]:
        return {}
    stated = " or ".join(map(plain, rules))
    return {"brightness of numbers": f"{stated}, as after `--intensity` of `isotorus pack`"}


def _training(trained: Trained, licence: str | None) -> str:
    described = trained.described
    rows = jsonl.read(trained.run / "metrics.jsonl", "step") if trained.run else []
    rows = [row for row in rows if row["step"] <= described.step]
    images = described.images or _images_by_epoch(rows)
    recipe = {key: described.config[key] for key in _RECIPE if key in described.config}
    if described.supervised and isinstance(recipe.get("objective"), dict):
        # What names somebody's files is left out.
        recipe["objective"] = {k: x for k, x in recipe["objective"].items() if k not in ("val", "targets")}
    if warm_start := _text(recipe, "encoder", "weights"):
        recipe["encoder"] = recipe["encoder"] | {"weights": Path(warm_start).name}
    about = {
        "data": f"fingerprint {plain(described.data_fingerprint)}"
        if described.data_fingerprint
        else "unknown",
        "images": "not recorded" if images is None else f"{images:,}",
        "licence of the data": one_line(licence).replace("|", "/") if licence else "not stated",
        "first weights": f"from {plain(Path(warm_start).name)}" if warm_start else "random",
        "seen in training": _seen(rows, described.step),
        "cost": _cost(rows),
        "weights": f"SHA-256 `{trained.weights.sha256}` of the checkpoint's safetensors file",
    }
    text = yaml.safe_dump(recipe, sort_keys=False).replace("```", "'''") if recipe else "not recorded\n"
    return (
        f"## Training\n\n{_table(about)}\n<details><summary>Recipe</summary>\n\n```yaml\n{text}```\n\n"
        "</details>\n"
    )


def _scores(trained: Trained, found: Evaluation | None) -> list[str]:
    """Return the sections about scores and geometry; they say so where there is no evaluation."""
    if found is None:
        return [
            "## Scores\n\nNot evaluated: the run's folder has no evaluation of these weights. "
            "`isotorus eval RUN --train … --val …` makes one.\n"
        ]
    place = plain("/".join(found.file.parts[-3:]))
    rows = found.scores()
    table = "| score | this encoder (95 % interval) | best baseline |\n|---|---|---|\n" + "\n".join(rows)
    scores = (
        f"On {found.about_data()}, as {place} of the run's folder says.\n\n{table}"
        if rows
        else (f"{place} of the run's folder has no scores against labels.")
    )
    geometry = found.geometry() or ["Not measured."]
    return [f"## Scores\n\n{scores}\n", "## Geometry\n\n" + "\n".join(geometry) + "\n"]


def _not_tested(trained: Trained, found: Evaluation | None) -> str:
    described = trained.described
    said = [
        f"Images of other sizes than {described.image_size} pixels, of other channels, cameras, places or "
        "times than those of the data above.",
        "Fairness between groups, safety, and any decision about a person.",
        "Robustness to damaged, altered or adversarial images.",
    ]
    if found is None:
        said.insert(0, "Any task: these weights were not evaluated.")
    else:
        said.insert(0, f"Any other data than {found.about_data()}.")
        if found.certificate is None:
            said.append("Whether its vectors follow rotations, shifts or hue: it has no certificate.")
    return "## Not tested\n\n" + "\n".join(f"- {line}" for line in said) + "\n"


def _images_by_epoch(rows: list[dict[str, Any]]) -> int | None:
    """Return the number of images in an epoch, from a row that says how many epochs some samples are."""
    samples, epoch = (number(rows[0].get(key)) if rows else None for key in ("samples", "epoch"))
    images = samples / epoch if samples and epoch else 0.0
    return round(images) if 0 < images < 2**63 else None


def _seen(rows: list[dict[str, Any]], step: int) -> str:
    samples, epoch = (number(rows[-1].get(key)) if rows else None for key in ("samples", "epoch"))
    if samples is None or epoch is None:
        return f"{step:,} steps"
    return f"{step:,} steps, {samples:,.0f} images, {epoch:.1f} times each image"


def _cost(rows: list[dict[str, Any]]) -> str:
    """Return the hours that the logged steps took at the speed logged for them."""
    seconds, before = 0.0, 0.0
    for row in rows:
        samples, speed = number(row.get("samples")), number(row.get("images_per_second"))
        if samples is None or not speed:
            return "not recorded"
        seconds, before = seconds + (samples - before) / speed, samples
    if not rows:
        return "not recorded"
    hours = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    memory = number(rows[-1].get("memory_gib"))
    peak = f", {memory:.1f} GiB of memory a process" if memory else ""
    return f"{hours} of training steps{peak}; the machine is not recorded"


def _table(rows: Mapping[str, str]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _text(values: Any, *keys: str) -> str:
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return values if isinstance(values, str) else ""


def _heading(name: str) -> str:
    """Return a name without what Markdown or HTML would read as more than letters."""
    return re.sub(r"[^\w .+-]", "·", one_line(name))[:100] or "encoder"


def _plain_name(name: str) -> str:
    """Return the name of a folder as it can stand in a string of code."""
    return re.sub(r'["\\\n{}]', "_", one_line(name))
