"""Imports follow the rooms, docs/architecture.md names each room, and public names keep their addresses."""

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "isotorus": set(),
    "data_pipeline": {"isotorus"},
    "pretrain": {"isotorus", "data_pipeline"},
    "eval_suite": {"isotorus", "data_pipeline", "pretrain"},
    "finetune": {"isotorus", "data_pipeline", "pretrain", "eval_suite"},
    "launch": {"isotorus", "pretrain"},
}
"""For each package, the other packages that it may import, also inside functions."""
USES_OF_PRETRAIN = {
    "eval_suite": {"checkpoint", "geometry", "models", "objectives", "run_control"},
    "finetune": {
        *("__main__", "checkpoint", "config", "distributed", "methods", "models", "monitoring", "preflight"),
        *("run_control", "supervised"),
    },
    "launch": {"config", "cost", "monitoring", "preflight", "sweep"},
}
"""The rooms and modules of `pretrain` that the packages after it may import."""
MOST_SIDE_BY_SIDE = 20
MOST_LINES = 400
PUBLIC = {
    "pretrain.objectives.sigreg": {"epps_pulley": "x t_max knots", "SIGReg": "num_slices t_max knots seed"},
    "pretrain.objectives.lejepa": {"lejepa_loss": "z n_global weight sigreg step directions"},
    "pretrain.objectives.vicreg": {"vicreg_loss": ""},
    "pretrain.objectives.toroidal": {
        "toroidal_covariance": "z grid_size weighting time",
        "torus_uniformity": "angles frequencies weights",
        "angles_from_pairs": "pairs",
    },
    "pretrain.geometry.torus": {
        "spectral_gap": "grid_size",
        "laplacian": "grid_size",
        "distance": "grid_size",
    },
    "data_pipeline.order": {"sample_index": "position n seed", "Order": "", "share": ""},
    "data_pipeline.loader": {"Loader": ""},
    "eval_suite.geometry.graph": {"knn_graph": "x k", "laplacian_spectrum": "graph count"},
    "eval_suite.geometry.homology": {"barcodes": "x max_dim coeff threshold", "betti": "x max_dim"},
    "eval_suite.geometry.dimension": {"two_nn": "x", "mle": "x k"},
    "eval_suite.geometry.rank": {"rankme": "x", "effective_rank": "x", "alpha_req": "x", "lidar": "x"},
    "eval_suite.geometry.verdict": {"measure": "x jobs", "decide": "measured"},
    "eval_suite.usefulness.neighbors": {"knn_classify": "train_x train_y test_x k temperature"},
    "eval_suite.usefulness.probe": {"linear_probe": "train_x train_y val_x val_y test_x test_y"},
}
"""Names that code outside this repository imports, with the parameters that it passes by name."""


@cache
def modules() -> dict[str, Path]:
    """Return every module of the product by its dotted name; a package stands for its __init__.py."""
    files = itertools.chain.from_iterable((ROOT / package).rglob("*.py") for package in MAY_IMPORT)
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


@cache
def imports_of(name: str) -> list[tuple[str, int, bool]]:
    """Return what a module imports of the product: (name, line, whether the import is at the head)."""
    tree = ast.parse(modules()[name].read_text())
    late = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        or (isinstance(outer, ast.If) and "TYPE_CHECKING" in ast.unparse(outer.test))
        for inner in ast.walk(outer)
    }
    imported = []
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} has a relative import; write the whole address"
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [address if address in modules() else str(node.module) for address in full]
        imported += [(each, node.lineno, id(node) not in late) for each in targets if each in modules()]
    return imported


def test_packages_import_only_the_packages_before_them() -> None:
    wrong = []
    for name in modules():
        own = name.partition(".")[0]
        for target, line, _ in imports_of(name):
            other, _, rest = target.partition(".")
            arrow = f"{name}:{line} imports {target}"
            if other == own:
                continue
            if other not in MAY_IMPORT[own]:
                wrong.append(f"{arrow}, but {own} must not import {other}")
            elif other == "pretrain" and rest.partition(".")[0] not in USES_OF_PRETRAIN.get(own, {""}):
                allowed = ", ".join(sorted(USES_OF_PRETRAIN[own]))
                wrong.append(f"{arrow}, but of pretrain {own} may import only {allowed}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("depth", [2, 3, 9], ids=["rooms", "rooms in rooms", "modules"])
def test_no_import_circle(depth: int) -> None:
    """There is no circle between rooms (folders, and modules beside them), nor between single modules."""
    graph: dict[str, dict[str, str]] = defaultdict(dict)
    for source in modules():
        for target, line, at_head in imports_of(source):
            a, b = (".".join(name.split(".")[:depth]) for name in (source, target))
            if a != b and at_head:
                graph[a].setdefault(b, f"{source}:{line} imports {target}")
    circle = _circle(graph)
    assert not circle, "these imports form a circle; one of them must go:\n" + "\n".join(circle)


def _circle(graph: dict[str, dict[str, str]]) -> list[str]:
    """Return the imports of one circle, or an empty list."""
    finished: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            round_trip = [*path[path.index(node) :], node]
            return [graph[a][b] for a, b in itertools.pairwise(round_trip)]
        if node in finished:
            return []
        for other in graph.get(node, {}):
            if circle := walk(other, [*path, node]):
                return circle
        finished.add(node)
        return []

    return next((circle for node in list(graph) if (circle := walk(node, []))), [])


def test_folders_and_files_stay_small_enough_to_read() -> None:
    wrong = []
    folders: dict[Path, set[str]] = defaultdict(set)
    for top in (*MAY_IMPORT, "benchmarks", "tests"):
        for file in (ROOT / top).rglob("*.py"):
            if file.name == "__init__.py":
                folders[file.parents[1]].add(f"{file.parent.name}/")
            else:
                folders[file.parent].add(file.name)
            lines = len(file.read_text().splitlines())
            if lines > MOST_LINES:
                wrong.append(f"{file.relative_to(ROOT)} has {lines} lines, more than {MOST_LINES}")
    for folder, members in folders.items():
        if len(members) > MOST_SIDE_BY_SIDE:
            wrong.append(
                f"{folder.relative_to(ROOT)}/ has {len(members)} modules and rooms side by side, "
                f"more than {MOST_SIDE_BY_SIDE}: {', '.join(sorted(members))}"
            )
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", sorted({module.partition(".")[0] for module in PUBLIC}))
def test_public_names_are_importable_in_a_clean_process(package: str) -> None:
    names = {module: PUBLIC[module] for module in PUBLIC if module.startswith(f"{package}.")}
    code = f"""
import importlib, inspect
for module, names in {names!r}.items():
    for name, parameters in names.items():
        has = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        missing = [parameter for parameter in parameters.split() if parameter not in has]
        assert not missing, f"{{module}}.{{name}} has no parameter {{missing}}"
"""
    clean = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert clean.returncode == 0, clean.stderr


def test_make_test_runs_every_test_file() -> None:
    paths = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["testpaths"]
    run = {path for pattern in paths for path in ROOT.glob(pattern)}
    missed = [file for file in (ROOT / "tests").rglob("test_*.py") if not run & {file, *file.parents}]
    assert not missed, f"testpaths in pyproject.toml leaves out {', '.join(map(str, missed))}"


def page_entries() -> Iterator[tuple[Path, str]]:
    """Yield what the tree of the page names: (folder, name of a file or of a room in it)."""
    page = (ROOT / "docs/architecture.md").read_text()
    top = room = ROOT
    for line in page.split("```")[1].splitlines():
        if not line.strip():
            continue
        indent, heads, text = re.fullmatch(r"( *)([\w./*]+(?:, [\w./*]+/)*)(?: {2,}(.*))?", line).groups()  # type: ignore[union-attr]
        parent = ROOT if not indent else top
        for head in heads.split(", "):
            yield parent, head
        if heads.endswith("/"):
            room = parent / heads.split(", ")[0]
            top = top if indent else room
        for name in re.findall(r"\b(\w+\.py|\w+/)(?!\w)", text or ""):
            yield (room if heads.endswith("/") else parent), name


def test_the_architecture_page_names_every_room_and_nothing_else() -> None:
    named = {(folder / name).resolve() for folder, name in page_entries()}
    wrong = [
        f"it names {path.relative_to(ROOT)}, which does not exist" for path in named if not path.exists()
    ]
    rooms = [file.parent for package in MAY_IMPORT for file in (ROOT / package).rglob("__init__.py")]
    wrong += [f"it does not name {room.relative_to(ROOT)}/" for room in rooms if room not in named]
    assert not wrong, "docs/architecture.md: " + "; ".join(wrong)
