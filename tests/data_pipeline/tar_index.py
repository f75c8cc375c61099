"""What the tests of `index` share: tars made member by member, and the labels of a data set."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from data_pipeline.dataset.index import Dataset

Run = Callable[..., str]


def write(tar: Path, files: dict[str, bytes | str]) -> Path:
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tar, "w") as out:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return tar


def labels(dataset: Dataset) -> dict[str, str | None]:
    """Class name of every key."""
    return {
        dataset.key(i): dataset.classes[label] if (label := dataset.labels[i]) >= 0 else None
        for i in range(len(dataset))
    }
