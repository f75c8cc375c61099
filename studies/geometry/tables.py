"""`python -m studies.geometry.tables`: print what is finished of the study, a line for each objective."""

import sys
from collections import defaultdict

from isotorus.errors import exit_code
from studies.geometry.plan import OBJECTIVES
from studies.geometry.study import rows
from studies.torus.tables import over_seeds


def main() -> int:
    """Print the chosen point of each grid, and test scores over seeds beside LeJEPA's."""
    test: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    chosen, failed = {}, []
    for row in rows():
        if "failed" in row:
            failed.append(f"{row['name']} ({row['failed']})")
        elif row["stage"] == "test":
            test[row["objective"]][row["seed"]] = row["test"]
            chosen[row["objective"]] = f"lr {row['learning_rate']:g}, weight {row['weight']:g}"
    print("| objective | chosen on val | seeds | k-NN, % | linear probe, % | k-NN less LeJEPA's, points |")
    print("|---" * 6 + "|")
    for name in OBJECTIVES:
        seeds = test[name]
        if not seeds:
            print(f"| {name} | not finished | 0 | | | |")
            continue
        less = [
            100 * (of["knn"] - test["lejepa"][s]["knn"]) for s, of in seeds.items() if s in test["lejepa"]
        ]
        scores = [over_seeds([100 * of[method] for of in seeds.values()]) for method in ("knn", "probe")]
        print(f"| {name} | {chosen[name]} | {len(seeds)} | {' | '.join(scores)} | {over_seeds(less)} |")
    print(f"\nFailed: {', '.join(failed) or 'no run'}.")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
