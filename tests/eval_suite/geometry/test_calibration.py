"""The calibration continues after a kill, and its table counts all recorded draws."""

import json
import subprocess
import sys
from pathlib import Path

from scipy.stats import binomtest

ROOT = Path(__file__).parents[3]
MEASURED = {
    "samples": 1500,
    "width": 64,
    "landmarks": 120,
    "betti": {"2": [1, 2, 1], "3": [1, 2, 1]},
    "components": 1,
    "eigenvalues": [1.0, 1.0, 1.1, 1.1, 1.9, 2.0, 2.1, 2.2, 3.7, 3.8],
    "dimension": 1.8,
    "two_nn": 5.0,
    "isotropy": 0.2,
    "radial": 0.5,
    "normality": 5.0,
}


def row(index: int, space: str, **changed: object) -> str:
    return json.dumps(
        {"index": index, "space": space, "ambient": 4, "noise": 0.1, "measured": MEASURED | changed}
    )


def run(*arguments: object) -> None:
    command = [sys.executable, "-m", "benchmarks.calibration", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT, timeout=200)


def test_a_cut_line_is_drawn_again_and_the_others_are_not(tmp_path):
    file = tmp_path / "draws.jsonl"
    # Of the 13 rows of the table all but the circle's (4) are there; the kill came while that was written.
    kept = [row(index, "donut") for index in range(13) if index != 4]
    file.write_text("\n".join([*kept, row(4, "circle")[:60]]))
    run(file, "--rounds", 1)
    lines = file.read_text().splitlines()
    assert lines[:12] == kept and len(lines) == 14
    drawn = json.loads(lines[13])
    assert (drawn["index"], drawn["space"]) == (4, "circle")
    assert drawn["measured"]["betti"]["2"] == [1, 1, 0]


def test_table_gives_counts_and_exact_intervals(tmp_path):
    file, page = tmp_path / "draws.jsonl", tmp_path / "page.md"
    found = [row(index, "flat torus") for index in range(39)]
    found.append(row(39, "flat torus", betti={"2": [1, 2, 1], "3": [1, 1, 0]}))
    file.write_text("\n".join([*found, row(40, "donut"), row(41, "donut", dimension=3.0)]) + "\n")
    page.write_text("before\n<!-- calibration -->\nold\n<!-- end -->\nafter\n")
    run(file, "--table", page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert "| flat torus in R^4 | 40 | 39 |  |  |  | 1 |" in text
    assert "| donut | 2 | 1 |  |  |  | 1 |" in text
    low, high = binomtest(39, 40).proportion_ci(method="exact")
    assert f"39 of 40 draws, 97.5 % ({100 * low:.1f} to {100 * high:.1f})" in text
    low, high = binomtest(1, 2).proportion_ci(method="exact")
    assert f"1 of 2, 50.0 % ({100 * low:.1f} to {100 * high:.1f})" in text
