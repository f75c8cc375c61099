"""What is in a packed data set, for people and for scripts."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.index import Dataset


def as_dict(folder: str) -> dict[str, Any]:
    """The newest generation of a data set, and where it lies."""
    return Dataset(folder).description.model_dump() | {"path": folder}


def as_text(folder: str) -> str:
    facts = as_dict(folder)
    width, height = facts["width"], facts["height"]
    classes = ", ".join(
        f"{name} {count}" for name, count in zip(facts["classes"], facts["class_counts"], strict=True)
    )
    unlabelled = facts["count"] - sum(facts["class_counts"])
    lines = {
        "images": f"{facts['count']} ({facts['skipped']} files skipped)",
        "classes": classes + (f", without label {unlabelled}" if classes and unlabelled else "") or "none",
        "pixels": "width {min}-{max}, median {median}; ".format(**width)
        + "height {min}-{max}, median {median}".format(**height),
        "channels": {1: "1 (greyscale)", 3: "3 (colour)"}.get(facts["channels"], str(facts["channels"])),
        "mean": " ".join(f"{x:.4f}" for x in facts["mean"]),
        "std": " ".join(f"{x:.4f}" for x in facts["std"]),
        "shards": f"{facts['shards']}, {facts['bytes'] / 1e6:.1f} MB",
        "fingerprint": facts["fingerprint"],
    }
    return "\n".join([folder, *(f"  {name:<12} {value}" for name, value in lines.items())])


def as_json(folders: list[str], split: bool) -> str:
    """One object of the facts, or with a split one of such objects by name of the set."""
    facts = [as_dict(folder) for folder in folders]
    named = {Path(folder).name: fact for folder, fact in zip(folders, facts, strict=True)}
    return json.dumps(named if split else facts[0], indent=1)
