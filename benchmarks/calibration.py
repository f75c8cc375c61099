"""Count how often each known space gets each verdict at the default settings; continues where it was stopped.

One line of JSON with the measured quantities is appended for each draw. `--publish` applies the present rules
without drawing again. A draw does not depend on the draws before it. The plan `shapes` has the spaces that a
verdict can name, and `tori` flat tori of several ratios and many spaces that are none.
"""

import argparse
import json
import lzma
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from joblib import Parallel, delayed

from eval_suite.geometry import circular, criteria, error_rates, graph, known_spaces, landmarks, verdict
from isotorus import files

SERIES = 4
"""First part of the seeds of `plan`; the rules were chosen on other ones."""
TORI_SERIES = 5
"""First part of the seeds of `tori`."""
SAMPLES = (300, 1_000, 2_000, 5_000)
WIDTHS = (4, 64, 768)
NOISE = (0.0, 0.05, 0.15)
"""Standard deviations of each coordinate; circles, spheres and tori have radius 1."""
TORI_SAMPLES = (1_000, 2_000)
TORI_NOISE = (0.05, 0.1, 0.15)
"""The same of the plan `tori`; of a rectangular torus the shorter circle has radius 1."""
TORUS = "flat torus"
OTHERS = (
    *("donut", "circle", "sphere", "Klein bottle", "S¹∨S¹∨S²", "T³"),
    *("two tori", "Gaussian", "uniform cube", "clusters"),
)
"""The other spaces of `plan`. Their order decides which seed and noise a draw has."""
TORI = (TORUS, *error_rates.SPACES[verdict.RECTANGULAR])
NO_TORI = (*OTHERS, "hexagonal torus", "cylinder", "annulus", "Möbius strip", "figure eight", "donut")
"""The spaces of the plan `tori`; the donut is there twice, because it is the nearest to a flat torus."""
DIGITS = 5
"""Significant digits of recorded bars."""

Counts = dict[tuple[str, int, int], Counter[str]]
"""Verdicts by space, samples and width."""


class Draw(NamedTuple):
    """One cloud of the calibration."""

    index: int
    samples: int
    ambient: int
    space: str
    noise: float
    series: int = SERIES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "file",
        type=Path,
        help="JSON lines, one for each draw; created or continued; may end in .xz to be read",
    )
    parser.add_argument("--plan", choices=("shapes", "tori"), default="shapes", help="which draws are made")
    parser.add_argument(
        "--rounds", type=int, default=2, help="number of rounds, of 156 draws each (shapes) or 120 (tori)"
    )
    parser.add_argument(
        "--samples", type=int, nargs="+", default=SAMPLES, help="only these numbers of samples"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument(
        "--publish", type=Path, metavar="PAGE", help="write table and error rates from the file, draw nothing"
    )
    parser.add_argument(
        "--spectra",
        action="store_true",
        help="draw more eigenvalues for the rows that have too few, no new rows",
    )
    args = parser.parse_args()
    if args.publish:
        publish(args.file, args.publish)
        return
    if args.spectra:
        kept = [json.dumps(with_all_eigenvalues(row), ensure_ascii=False) for row in rows(args.file)]
        with files.atomic(args.file) as file:
            file.write(("\n".join(kept) + "\n").encode())
        return
    drawn_before = {(draw.series, draw.index) for draw in map(draw_of, rows(args.file))}
    planned = plan(args.rounds) if args.plan == "shapes" else tori(args.rounds)
    todo = [
        draw
        for draw in planned
        if draw.samples in args.samples and (draw.series, draw.index) not in drawn_before
    ]
    cut = args.file.exists() and not args.file.read_text().endswith("\n")
    with args.file.open("a") as file:
        file.write("\n" if cut else "")
        drawn = Parallel(n_jobs=args.jobs, return_as="generator_unordered")(
            delayed(measure)(draw) for draw in todo
        )
        for row in drawn:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def plan(rounds: int) -> list[Draw]:
    """Return the draws of the first `rounds` rounds, those of few samples first in each round.

    A round holds, for each number of samples and width, a torus with each noise and every other space once;
    the noise of the others changes from round to round.
    """
    draws: list[Draw] = []
    for round_ in range(rounds):
        for samples in SAMPLES:
            for place, ambient in enumerate(WIDTHS):
                clouds = [(TORUS, noise) for noise in NOISE]
                clouds += [
                    (space, NOISE[(round_ + place + number) % len(NOISE)])
                    for number, space in enumerate(OTHERS)
                ]
                draws += [
                    Draw(len(draws) + number, samples, ambient, space, noise)
                    for number, (space, noise) in enumerate(clouds)
                ]
    return draws


def tori(rounds: int) -> list[Draw]:
    """Return the draws of the first `rounds` rounds of flat tori and other spaces.

    A round holds, for each number of samples and width, a torus of each ratio and the other spaces; the noise
    changes from round to round.
    """
    draws: list[Draw] = []
    for round_ in range(rounds):
        for samples in TORI_SAMPLES:
            for place, ambient in enumerate(WIDTHS):
                for number, space in enumerate((*TORI, *NO_TORI)):
                    noise = TORI_NOISE[(round_ + place + number) % len(TORI_NOISE)]
                    draws.append(Draw(len(draws), samples, ambient, space, noise, TORI_SERIES))
    return draws


def points(draw: Draw) -> known_spaces.Points:
    """Return the cloud of a draw."""
    seed = (draw.series, draw.index, 1)
    return known_spaces.sample(draw.space, draw.samples, draw.ambient, draw.noise, seed=seed)


def draw_of(row: dict[str, Any]) -> Draw:
    """Return the draw of a recorded row; earlier versions recorded no series."""
    return Draw(**{name: row[name] for name in Draw._fields if name in row})


def with_all_eigenvalues(row: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded row with as many eigenvalues as verdicts are given by, from the same cloud.

    Homology stays as it was recorded, unless the spectrum now has the long circle shortened before it.
    """
    recorded = row["measured"]["eigenvalues"]
    if len(recorded) >= verdict.EIGENVALUES:
        return row
    draw = draw_of(row)
    reduced = landmarks.reduce(points(draw), seed=draw.index)
    neighbours = graph.knn_graph(reduced, verdict.NEIGHBOURS)
    spectrum = graph.laplacian_spectrum(neighbours, verdict.EIGENVALUES)
    if not np.allclose(spectrum.eigenvalues[: len(recorded)], recorded, rtol=1e-4):
        raise ValueError(f"draw {draw.index} has other eigenvalues than were recorded")
    if criteria.shortening(spectrum.eigenvalues, spectrum.components, draw.samples) > 1:
        return measure(draw)
    return {**row, "measured": {**row["measured"], "eigenvalues": spectrum.eigenvalues.tolist()}}


def measure(draw: Draw) -> dict[str, Any]:
    """Make a draw and return it with its measured quantities, its bars and the coverage of its two loops."""
    x = points(draw)
    evidence = verdict.measure(x, seed=draw.index)
    coverage = None
    if min(numbers[1] for numbers in evidence.homology.betti.values()) >= 2:
        angles = circular.circular_coordinates(evidence.cloud.denoised[evidence.cloud.landmarks]).angles
        coverage = circular.joint_coverage(angles) if angles.shape[1] == 2 else None
    return {
        **draw._asdict(),
        "measured": asdict(evidence.measured),
        "homology": _short(evidence.homology.to_json()),
        "joint_coverage": coverage,
    }


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of `path`; a killed process may have left half a line."""
    if not path.exists():
        return
    packed = path.read_bytes()
    text = (lzma.decompress(packed) if path.suffix == ".xz" else packed).decode()
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def judged(path: Path) -> list[tuple[Draw, verdict.Verdict]]:
    """Return all recorded draws with their verdicts by the present rules."""
    return [(draw_of(row), verdict.decide(verdict.Measured(**row["measured"]))) for row in rows(path)]


def count(draws: list[tuple[Draw, verdict.Verdict]]) -> Counts:
    """Return how often each verdict is given, by space, samples and width."""
    counts: Counts = defaultdict(Counter)
    for draw, decision in draws:
        counts[draw.space, draw.samples, draw.ambient][decision.name] += 1
    return counts


def publish(path: Path, page: Path) -> None:
    """Write the tables between the marks of `page`, and the error rates that verdicts are printed with."""
    draws = judged(path)
    written = f"{flat_tori(draws)}\n\n{tables(count(draws))}"
    marks = r"(<!-- calibration -->\n).*?(<!-- end -->)"
    text = page.read_text("utf-8")
    page.write_text(re.sub(marks, lambda m: m[1] + written + "\n" + m[2], text, flags=re.S), encoding="utf-8")
    error_rates.write(rates(count(draws)))


def rates(counts: Counts) -> list[error_rates.ErrorRate]:
    """Return the error rates of all verdicts by samples and width, pooled over noise."""
    found = []
    for samples in SAMPLES:
        for width in WIDTHS:
            for name, spaces in error_rates.SPACES.items():
                here, others = (
                    sum(
                        (
                            counts[space, samples, width]
                            for space in known_spaces.SPACES
                            if (space in spaces) == of_it
                        ),
                        Counter[str](),
                    )
                    for of_it in (True, False)
                )
                found.append(
                    error_rates.ErrorRate(
                        name, samples, width, here[name], here.total(), others[name], others.total()
                    )
                )
    return found


def flat_tori(draws: list[tuple[Draw, verdict.Verdict]]) -> str:
    """Return how flat tori of each ratio are recognised, from 1,000 samples on, as Markdown."""
    enough = [(draw, decision) for draw, decision in draws if draw.samples >= min(TORI_SAMPLES)]
    lines = [
        "| from 1,000 samples on | draws | called a flat torus | 95 % interval | ratio of the fit |",
        "|---|---|---|---|---|",
    ]
    spaces: dict[str, tuple[str, ...]] = {space: (space,) for space in TORI}
    spaces |= {"all flat tori": TORI, "all other spaces": tuple(known_spaces.SPACES.keys() - set(TORI))}
    for label, names in spaces.items():
        decisions = [decision for draw, decision in enough if draw.space in names]
        hits = [decision for decision in decisions if decision.name in verdict.FLAT_TORI]
        ratios = [decision.flat_torus.ratio for decision in hits if decision.flat_torus]
        span = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios and names != TORI else ""
        lines.append(
            f"| {label} | {len(decisions)} | {len(hits)} | {percent(len(hits), len(decisions), 1)} | {span} |"
        )
    return "\n".join(lines)


def tables(counts: Counts) -> str:
    """Return the verdicts by space, and each shape's hits and false alarms by setting, as Markdown."""
    names = [*error_rates.SPACES, verdict.NONE]
    lines = [f"| space | draws | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for space in (*TORI, *dict.fromkeys(NO_TORI)):
        pooled = sum((counts[space, n, width] for n in SAMPLES for width in WIDTHS), Counter())
        cells = " | ".join(str(pooled[name] or "") for name in names)
        lines.append(f"| {space} | {pooled.total()} | {cells} |")
    header = " | ".join(f"R^{width}" for width in WIDTHS)
    for name in error_rates.SPACES:
        lines += ["", f"{name}: found, and others taken for it", ""]
        lines += [f"| samples | {header} | all, with intervals |", "|---|" + "---|" * (len(WIDTHS) + 1)]
        for n in SAMPLES:
            row = [rate for rate in rates(counts) if rate.name == name and rate.samples == n]
            cells = [f"{rate.found} of {rate.draws}, {rate.wrong} of {rate.others}" for rate in row]
            found, draws, wrong, others = (
                sum(column) for column in zip(*(rate[3:] for rate in row), strict=True)
            )
            cells.append(f"{percent(found, draws)}, {percent(wrong, others)}")
            lines.append(f"| {n:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percent(hits: int, draws: int, digits: int = 0) -> str:
    """Write the 95 % interval of a share in percent."""
    low, high = error_rates.interval(hits, draws)
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f} %"


def _short(value: Any) -> Any:
    """Return JSON data with numbers cut to `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_short(item) for item in value]
    return {key: _short(item) for key, item in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
