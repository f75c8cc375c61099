"""Count how often each space of known shape gets each verdict; continues where it stopped.

For each draw a line of JSON is appended with everything that the verdict depends on, so `--table` applies the
present rules without simulating again. Draw i does not depend on other draws.
"""

import argparse
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from scipy.stats import beta

from eval_suite.geometry import known_spaces, verdict

SERIES = 3
"""Series of seeds; the ranges of `verdict.RULES` were chosen on other seeds."""
SAMPLES = 1500
LANDMARKS = 120
NULL_DRAWS = 20
NOISE = (0.05, 0.15)
AMBIENT = (8, 64, 768)
TORI = [("flat torus", width) for width in (4, 64, 768)]
OTHERS = [name for name in known_spaces.SPACES if name != "flat torus"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="JSON lines, a draw each; made or continued")
    parser.add_argument("--rounds", type=int, default=40, help="draws of each row of the table")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", type=Path, help="only put the table into this page, between its marks")
    given = parser.parse_args()
    if given.table:
        text = given.table.read_text()
        marks = r"(<!-- calibration -->\n).*?(<!-- end -->)"
        given.table.write_text(
            re.sub(marks, lambda m: m[1] + table(given.file) + "\n" + m[2], text, flags=re.S)
        )
        return
    done = {row["index"] for row in rows(given.file)}
    todo = [index for index in range(given.rounds * len(kinds())) if index not in done]
    cut = given.file.exists() and not given.file.read_text().endswith("\n")
    with given.file.open("a") as file:
        file.write("\n" if cut else "")
        found = Parallel(n_jobs=given.jobs, return_as="generator_unordered")(
            delayed(draw)(index) for index in todo
        )
        for row in found:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def kinds() -> list[tuple[str, int | None]]:
    """Return spaces with their ambient dimensions; None means that the dimensions take turns."""
    return [*TORI, *((name, None) for name in OTHERS)]


def draw(index: int) -> dict[str, Any]:
    """Return the draw `index`: its space, its noise, and what was measured."""
    round_, kind = divmod(index, len(kinds()))
    space, width = kinds()[kind]
    if width is None:
        # A Gaussian is isotropic only in a space that it fills.
        width = 64 if space == "Gaussian" else AMBIENT[round_ % len(AMBIENT)]
    noise = float(np.random.default_rng((SERIES, index)).uniform(*NOISE))
    x = known_spaces.sample(space, SAMPLES, width, noise, seed=(SERIES, index, 1))
    measured = verdict.measure(x, count=LANDMARKS, draws=NULL_DRAWS, seed=index).measured
    return {"index": index, "space": space, "ambient": width, "noise": noise, "measured": asdict(measured)}


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines of `path`; a kill may have cut the last one."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def table(path: Path) -> str:
    """Return the verdicts by space and the two error rates, in Markdown."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows(path):
        name = row["space"] + (f" in R^{row['ambient']}" if row["space"] == "flat torus" else "")
        counts[name][verdict.decide(verdict.Measured(**row["measured"])).name] += 1
    names = [*verdict.RULES, verdict.GAUSSIAN, verdict.NONE]
    lines = [f"| space | draws | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    order = [f"{space} in R^{width}" for space, width in TORI] + OTHERS
    for name in order:
        found = counts[name]
        lines.append(f"| {name} | {found.total()} | {' | '.join(str(found[v] or '') for v in names)} |")
    torus, *_ = names
    tori = sum((counts[f"{space} in R^{width}"] for space, width in TORI), Counter())
    others = sum((counts[name] for name in OTHERS), Counter())
    hit, false = tori[torus], others[torus]
    lines += [
        "",
        f"A flat torus is found in {hit} of {tori.total()} draws, {percent(hit, tori.total())}; "
        f"what is none is called one in {false} of {others.total()}, {percent(false, others.total())}.",
    ]
    return "\n".join(lines)


def percent(hits: int, draws: int) -> str:
    """Return a share with its 95 % interval (Clopper & Pearson 1934)."""
    low = beta.ppf(0.025, hits, draws - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, draws - hits) if hits < draws else 1.0
    return f"{100 * hits / max(draws, 1):.1f} % ({100 * low:.1f} to {100 * high:.1f})"


if __name__ == "__main__":
    main()
