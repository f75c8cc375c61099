"""The LeJEPA of docs/objectives.md runs as it stands on the page, and its loss falls."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.__main__ import main as pack_main
from isotorus.errors import exit_code

ROOT = Path(__file__).parents[3]
SMALLER = {
    "batch_size=128": "batch_size=32",
    "global_size=64": "global_size=32",
    '"vit_small_patch16_224", img_size=64': '"test_vit", img_size=32',
    "lr=5e-4": "lr=2e-3",
    "batch.step == 1000": "batch.step == 50",
}
"""What is changed so that the example takes seconds."""


def example() -> str:
    """Return the code block of the page."""
    page = (ROOT / "docs" / "objectives.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return code


@pytest.mark.nightly
def test_the_example_of_the_page_learns(tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(0)
    for i in range(32):
        coarse = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(photos / f"{i}.png")
    packed = ["pack", str(photos), str(tmp_path / "shards" / "train"), "--workers", "1"]
    assert exit_code(lambda: pack_main(packed)) == 0
    code = example()
    for text, smaller in SMALLER.items():
        assert code.count(text) == 1
        code = code.replace(text, smaller)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [int(row[0]) for row in rows] == list(range(51))
    assert rows[0][1::2] == ["loss", "prediction", "sigreg"]
    loss = [float(row[2]) for row in rows]
    assert np.mean(loss[-5:]) < 0.9 * np.mean(loss[:5]), done.stdout


def test_the_example_has_about_15_lines_without_its_imports():
    lines = [line for line in example().splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 17
