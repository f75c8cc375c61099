"""What is in a packed data set, for people and for scripts."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.index import Dataset


def as_dict(folder: Path) -> dict[str, Any]:
    """dataset.json without the list of shards, and what follows from it."""
    dataset = Dataset(folder)
    shards = dataset.description.shards
    return dataset.description.model_dump(exclude={"shards"}) | {
        "path": str(folder),
        "fingerprint": dataset.fingerprint,
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
    }


def as_text(folder: Path) -> str:
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
        "channels": "1 (greyscale)" if facts["channels"] == 1 else "3 (colour)",
        "mean": " ".join(f"{x:.4f}" for x in facts["mean"]),
        "std": " ".join(f"{x:.4f}" for x in facts["std"]),
        "shards": f"{facts['shards']}, {facts['bytes'] / 1e6:.1f} MB",
        "fingerprint": facts["fingerprint"],
    }
    return "\n".join([str(folder), *(f"  {name:<12} {value}" for name, value in lines.items())])


def as_json(folders: list[Path], split: bool) -> str:
    """One object of the facts, or with a split one of such objects by name of the set."""
    facts = [as_dict(folder) for folder in folders]
    named = {folder.name: fact for folder, fact in zip(folders, facts, strict=True)}
    return json.dumps(named if split else facts[0], indent=1)
