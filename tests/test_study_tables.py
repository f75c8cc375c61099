"""The tables of the study of objectives: what they say of rows that are known or missing."""

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from studies.geometry import flat, tables
from studies.geometry import measured as measured_parts
from studies.geometry.plan import grid, run
from studies.geometry.study import RESULTS, rows

CLOUD = {
    "rank": {"effective_rank": 8.0, "rankme": 20.0, "alpha_req": 1.5, "eigenspectrum": [2.0, 1.0, 0.5]},
    "dimension": {"two_nn": 9.0},
    "normality": {"sigreg": 30.0},
    "graph": {
        "gap": 0.01, "torus_ratio": 1.25, "gaussian_ratio": 0.5, "second_band": 2.0,
        "intervals": {"gap": [0.005, 0.015]},
    },
    "homology": {
        "betti": {"2": [1, 2, 1]},
        "p_values": {"2": [[], [0.05, 0.5], [0.04]]},
        "bars": {"2": [[[0.0, None]]]},
    },
    "verdict": {"name": "flat torus T²"},
}  # fmt: skip


def measured(objective: str, seed: int, knn: float, stage: str = "test", point: int = 0) -> dict[str, Any]:
    """Return the row of a run at a point of its grid, with this k-NN."""
    at = grid(objective)[point]
    scores = {"knn": knn, "minibatch_probe": knn, "probe": knn + 0.1}
    row = run(objective, at.learning_rate, at.weight, seed)._asdict()
    row |= {"stage": stage, "cpu_seconds": 100.0, "training": {"loss": 1 - knn}, "val": scores}
    return row | (
        {"test": scores, "geometry": {"embedding": copy.deepcopy(CLOUD)}} if stage == "test" else {}
    )


def line(lines: list[str], *starts: str) -> list[str]:
    """Return the cells of the only line that begins with these."""
    cells = [[cell.strip() for cell in each.strip("|").split("|")] for each in lines]
    (found,) = [each for each in cells if each[: len(starts)] == list(starts)]
    return found


def test_differences_are_taken_within_a_seed() -> None:
    """LeJEPA and VICReg both vary by 10 points over seeds, but VICReg is 2, 3 and 4 points ahead in each."""
    found = [measured("lejepa", seed, knn) for seed, knn in enumerate((0.3, 0.4, 0.35, 0.5))]
    found += [measured("vicreg", seed, knn) for seed, knn in enumerate((0.32, 0.43, 0.39))]
    cells = line(tables.sections(found)["Scores on test"], "vicreg")
    assert cells[2:4] == ["3", "38.0 (24.2 to 51.8)"]
    assert cells[5] == "3.0 (0.5 to 5.5)"  # 3 ± 4.303 / √3, Student's t with 2 degrees of freedom


def test_the_untrained_encoder_is_a_line_of_its_own() -> None:
    found = [measured("lejepa", seed, 0.4) for seed in range(2)]
    for row, knn in zip(found, (0.2, 0.3), strict=True):
        untrained = {method: {"balanced_accuracy": knn} for method in ("knn", "probe")}
        row["scores"] = {"pretrained": {}, "untrained": untrained}
    cells = line(tables.sections(found)["Scores on test"], "untrained")
    assert cells[2] == "2"
    assert cells[5].startswith("-15.0 ")


def test_the_chosen_point_of_a_grid_is_bold_and_failures_are_listed() -> None:
    found = [measured("vicreg", 0, 0.3 + 0.01 * point, "val", point) for point in range(3)]
    failed = grid("vicreg")[3]._asdict() | {"stage": "val", "failed": "training: updates were refused"}
    sections = tables.sections([*found, failed])
    assert line(sections["Tuning"], "vicreg", "0.003", "0.2")[3] == "**32.0**"
    assert line(sections["Tuning"], "vicreg", "0.001", "0.2")[3] == "30.0"
    assert line(sections["Tuning"], "vicreg", "0.003", "1")[3] == "failed"
    assert sections["Failed"] == [f"- {failed['name']}, val: training: updates were refused"]


def test_geometry_has_betti_numbers_with_p_values_and_the_verdict() -> None:
    lines = tables.sections([measured("lejepa", seed, 0.3) for seed in range(3)])["Geometry of the embedding"]
    cells = line(lines, "lejepa")
    assert cells[2] == "8.0 (8.0 to 8.0)"
    assert cells[-2:] == ["1, 2, 1 (0.05, 0.04)", "flat torus T²"]


def test_loss_and_accuracy_are_correlated_within_an_objective() -> None:
    """In these rows a lower loss is always a higher score; two runs of another objective are too few."""
    found = [measured("lejepa", seed, 0.3 + 0.01 * seed) for seed in range(5)]
    lines = tables.sections([*found, measured("vicreg", 0, 0.9), measured("vicreg", 1, 0.1)])
    cells = line(lines["What tells accuracy"], "lejepa, runs")
    assert cells[2].startswith("-1.00")
    assert not any("vicreg" in each for each in lines["What tells accuracy"])


def test_a_row_keeps_verdicts_and_spectra_and_not_their_evidence() -> None:
    """Verdicts on pairs of angles are in a list; without that their evidence would be half of a row."""
    verdict = {"name": "flat torus T²", "evidence": {"circle": ["…"]}, "measured": {"samples": 2000}}
    cloud = {
        "rank": {"eigenspectrum": list(range(320))},
        "graph": {"gap": 0.1, "intervals": {"gap": [0.0, 0.2]}},
        "verdict": verdict,
        "pairs": {"of": 1, "pairs": [{"angles": [0, 1], **verdict}]},
        "homology": {"betti": {"2": [1, 2, 1]}, "null_longest": [[1.0] * 20]},
        "circular": {"angles": [[0.0] * 300]},
    }
    assert measured_parts.geometry(cloud) == {
        "rank": {"eigenspectrum": list(range(40))},
        "graph": {"gap": 0.1, "intervals": {"gap": [0.0, 0.2]}},
        "verdict": {"name": "flat torus T²"},
        "pairs": {"of": 1, "pairs": [{"angles": [0, 1], "name": "flat torus T²"}]},
        "homology": {"betti": {"2": [1, 2, 1]}},
    }


def test_a_run_that_was_measured_twice_is_one_row_of_the_csv(tmp_path: Path) -> None:
    chosen = measured("lejepa", 0, 0.3, "val")
    again = measured("lejepa", 0, 0.3) | {"cpu_seconds": None}
    flat.write(tmp_path / "results.csv", flat.by_run([chosen, again]))
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["stage"], row["cpu_seconds"], row["test/knn"]) == ("test", "100.0", "0.3")
    assert row["geometry/embedding/rank/eigenspectrum"] == "2 1 0.5"
    assert row["geometry/embedding/graph/intervals/gap_high"] == "0.015"
    assert row["geometry/embedding/homology/p_values/2/1"] == "0.05"
    assert not any("bars" in column or "overrides" in column for column in row)


def test_the_page_has_the_tables_of_the_committed_rows() -> None:
    page = tables.PAGE.read_text()
    assert tables.with_tables(page, tables.sections(rows())) == page, "python -m studies.geometry.tables"
    assert page.count("<!-- table: ") == len(tables.sections([]))


@pytest.mark.skipif(not RESULTS.exists(), reason="no run of the study is committed yet")
def test_every_committed_row_names_its_run_and_its_stage() -> None:
    keys = [(row["name"], row["stage"]) for row in map(json.loads, RESULTS.read_text().splitlines())]
    assert len(set(keys)) == len(keys)
