"""A data set with columns of many types, and the command `embed` in this process."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.eval_suite.eval_samples import Outcome, pack_folder, run_other

IMAGES = 30


def embed(*arguments: object) -> Outcome:
    """Run `isotorus embed …` without worker processes; it must succeed."""
    done = run_other("embed", *arguments, "--workers", 0)
    assert done.code == 0, done.err
    return done


def pack_table(folder: Path, *, images: int = IMAGES, seed: int = 0) -> Path:
    """Pack noise images with a Parquet table of labels, groups and other columns."""
    source = folder.with_name(f"{folder.name}-images")
    (source / "a").mkdir(parents=True)
    random = np.random.default_rng(seed)
    rows = range(images)
    for i in rows:
        pixels = random.integers(0, 255, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(source / f"a/{i:02d}.v1.png")
    table = {
        "image": [f"a/{i:02d}.v1.png" for i in rows],
        "label": [("good", "bad", None)[i % 3] for i in rows],
        "patient": [None if i == 4 else i // 5 for i in rows],
        "age": [30 + i for i in rows],
        "dose": [None if i == 2 else i / 4 for i in rows],
        "sound": [i % 2 == 0 for i in rows],
        "tags": [["x", f"y{i}"] for i in rows],
        "split": ["held out" if i % 2 else "used" for i in rows],
    }
    file = folder.with_name(f"{folder.name}.parquet")
    pq.write_table(pa.table(table), file)
    options = ["--labels", str(file), "--group-column", "patient"]
    return pack_folder(source, folder, *options)
