"""The calibration continues after a kill, and its table counts all recorded draws."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import calibration
from eval_suite.geometry import error_rates, known_spaces, landmarks, verdict

ROOT = Path(__file__).parents[3]
MEASURED = {
    "samples": 300,
    "width": 4,
    "landmarks": 100,
    "null_draws": 20,
    "betti": {"2": [1, 2, 1], "3": [1, 2, 1]},
    "components": 1,
    "eigenvalues": [1.0, 1.0, 1.1, 1.1, 1.9, 2.0, 2.1, 2.2, 3.7, 3.8],
    "dimension": 1.8,
    "two_nn": 5.0,
    "isotropy": 0.2,
    "radial": 0.5,
    "normality": 5.0,
}


def row(draw: calibration.Draw, **changed: object) -> str:
    return json.dumps(draw._asdict() | {"measured": MEASURED | changed})


def test_a_round_holds_each_space_in_each_setting():
    first, second = (calibration.plan(2)[part] for part in (slice(156), slice(156, None)))
    assert [draw.index for draw in first + second] == list(range(312))
    assert [draw._replace(index=0, noise=0) for draw in first] == [
        draw._replace(index=0, noise=0) for draw in second
    ]
    tori = {(draw.samples, draw.ambient, draw.noise) for draw in first if draw.space == "flat torus"}
    assert len(tori) == 4 * 3 * 3
    assert {draw.space for draw in first} == set(calibration.OTHERS) | {"flat torus"}


def test_a_round_of_tori_holds_each_ratio_and_many_other_spaces_in_each_setting():
    draws = calibration.tori(3)
    assert [draw.index for draw in draws] == list(range(360))
    settings = {(draw.space, draw.samples, draw.ambient, draw.noise) for draw in draws}
    assert len(settings) == len(known_spaces.SPACES) * 2 * 3 * 3
    assert {draw.series for draw in draws} == {calibration.TORI_SERIES}
    assert not settings & {draw[1:5] for draw in calibration.plan(1) if draw.samples == 300}


def test_missing_eigenvalues_are_drawn_from_the_same_cloud():
    draw = next(d for d in calibration.plan(1) if d.samples == 300 and d.space == "sphere")
    x = calibration.points(draw)
    full = verdict.graph.laplacian_spectrum(
        verdict.graph.knn_graph(landmarks.reduce(x, seed=draw.index)), 16
    ).eigenvalues.tolist()
    recorded = json.loads(row(draw, eigenvalues=full[:10]))
    recorded.pop("series")  # as rows of earlier versions have it
    completed = calibration.with_all_eigenvalues(recorded)
    assert completed["measured"]["eigenvalues"] == pytest.approx(full)
    assert completed["measured"]["betti"] == MEASURED["betti"]
    assert calibration.with_all_eigenvalues(completed) == completed
    with pytest.raises(ValueError, match="other eigenvalues"):
        calibration.with_all_eigenvalues(json.loads(row(draw)))


def test_a_cut_line_is_drawn_again_and_the_others_are_not(tmp_path):
    file = tmp_path / "draws.jsonl"
    small = [draw for draw in calibration.plan(1) if draw.samples == 300]
    cut = next(draw for draw in small if draw.space == "circle")
    # All draws of 300 samples but one are there; the kill came while that was written.
    kept = [row(draw) for draw in small if draw != cut]
    file.write_text("\n".join([*kept, row(cut)[:60]]))
    command = [sys.executable, "-m", "benchmarks.calibration", str(file), "--rounds", "1", "--samples", "300"]
    subprocess.run(command, check=True, cwd=ROOT, timeout=200)
    lines = file.read_text().splitlines()
    assert lines[: len(kept)] == kept and len(lines) == len(kept) + 2
    drawn = json.loads(lines[-1])
    assert calibration.Draw(*(drawn[name] for name in calibration.Draw._fields)) == cut
    assert drawn["measured"]["betti"]["2"] == [1, 1, 0]


def test_page_and_rates_give_the_recorded_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(error_rates, "FILE", tmp_path / "rates.json")
    monkeypatch.setattr(error_rates, "calibrated", tuple)  # as before the first calibration
    file, page = tmp_path / "draws.jsonl", tmp_path / "page.md"
    torus = calibration.Draw(0, 300, 4, "flat torus", 0.0)
    donut = calibration.Draw(0, 300, 4, "donut", 0.0)
    found = [row(torus)] * 9 + [row(torus, betti={"2": [1, 2, 1], "3": [1, 1, 0]})]
    file.write_text("\n".join([*found, row(donut), row(donut, dimension=3.0)]) + "\n")
    page.write_text("before\n<!-- calibration -->\nold\n<!-- end -->\nafter\n")
    calibration.publish(file, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert "| flat torus | 10 | 9 |  |  |  |  | 1 |" in text
    assert "| donut | 2 | 1 |  |  |  |  | 1 |" in text
    assert "| all flat tori | 0 | 0 |" in text  # these rows begin at 1,000 samples
    assert "| 300 | 9 of 10, 1 of 2 | 0 of 0, 0 of 0 |" in text
    rates = [error_rates.ErrorRate(**rate) for rate in json.loads((tmp_path / "rates.json").read_text())]
    torus_rate = next(rate for rate in rates if rate.name == "flat torus T²" and rate.draws)
    assert torus_rate[1:] == (300, 4, 9, 10, 1, 2)
    assert torus_rate.to_json()["found_interval"] == pytest.approx((0.554984, 0.997471), abs=1e-5)
