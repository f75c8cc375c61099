"""The rooms of docs/architecture.md, checked on the imports and on the names that outside code relies on."""

import ast
import importlib
import itertools
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("isotorus", "data_pipeline", "pretrain", "eval_suite", "launch")
ABOVE = {
    "isotorus": set(),
    "data_pipeline": {"isotorus"},
    "pretrain": {"isotorus", "data_pipeline"},
    "eval_suite": {"isotorus", "data_pipeline", "pretrain"},
    "launch": {"isotorus", "data_pipeline", "pretrain"},
}
"""Which packages a package may import."""
EVALUATION_USES = ("models", "geometry", "objectives", "checkpoint", "methods", "config")
"""What of `pretrain` the evaluation may import."""
MOST_SIDE_BY_SIDE = 20
MOST_LINES = 400
PUBLIC = {
    "pretrain.objectives.sigreg": ["epps_pulley", "SIGReg"],
    "pretrain.objectives.lejepa": ["lejepa_loss"],
    "pretrain.objectives.vicreg": ["vicreg_loss"],
    "pretrain.objectives.toroidal": ["toroidal_covariance", "torus_uniformity", "angles_from_pairs"],
    "pretrain.geometry.torus": ["spectral_gap", "laplacian", "distance"],
    "data_pipeline.order": ["sample_index", "Order", "share"],
    "data_pipeline.loader": ["Loader"],
    "eval_suite.geometry.graph": ["knn_graph", "laplacian_spectrum"],
    "eval_suite.geometry.homology": ["barcodes", "betti"],
    "eval_suite.geometry.dimension": ["two_nn", "mle"],
    "eval_suite.geometry.rank": ["rankme", "effective_rank", "alpha_req", "lidar"],
    "eval_suite.geometry.verdict": ["measure", "decide"],
    "eval_suite.usefulness.neighbors": ["knn_classify"],
    "eval_suite.usefulness.probe": ["linear_probe"],
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    named = {}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


@cache
def arrows() -> list[tuple[str, str, int]]:
    """(importing module, imported module, line) of every import at the head of a module.

    Imports inside functions count for the order of packages, which `late` adds; they make no circle.
    """
    return [arrow for name in modules() for arrow in imports_of(name, late=False)]


def imports_of(name: str, late: bool) -> list[tuple[str, str, int]]:
    tree = ast.parse(modules()[name].read_text())
    typing_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and "TYPE_CHECKING" in ast.unparse(test.test)
        for node in ast.walk(test)
    }
    nodes = ast.walk(tree) if late else _at_head(tree)
    found = []
    for node in nodes:
        if id(node) in typing_only and not late:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.append((full if full in modules() else node.module, node.lineno))
    return [(name, target, line) for target, line in found if target in modules()]


def _at_head(tree: ast.Module) -> list[ast.AST]:
    nodes: list[ast.AST] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))
    return nodes


def test_packages_import_only_what_stands_below_them() -> None:
    wrong = []
    for name in modules():
        own = name.partition(".")[0]
        for _, target, line in imports_of(name, late=True):
            other, *room = target.split(".")
            if other != own and other not in ABOVE[own] and (own, name) != ("isotorus", "isotorus.console"):
                wrong.append(f"{name}:{line} imports {target}: {own} stands below {other}")
            if own == "eval_suite" and other == "pretrain" and room[0] not in EVALUATION_USES:
                wrong.append(f"{name}:{line} imports {target}: the evaluation must not depend on training")
    assert not wrong, "\n".join(wrong)


def test_no_module_and_no_room_imports_itself_in_a_circle() -> None:
    for level in ("module", "room"):
        graph: dict[str, dict[str, str]] = defaultdict(dict)
        for source, target, line in arrows():
            a, b = (source, target) if level == "module" else (_room(source), _room(target))
            if a != b:
                graph[a].setdefault(b, f"{source}:{line} → {target}")
        circle = _circle(graph)
        assert not circle, f"a circle of {level}s:\n" + "\n".join(circle)


def _room(name: str) -> str:
    """The folder of a module, or the module itself where it stands in its package's own folder."""
    parts = name.split(".")
    return ".".join(parts[:2])


def _circle(graph: dict[str, dict[str, str]]) -> list[str]:
    """The arrows of one circle, or an empty list."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            round_trip = [*path[path.index(node) :], node]
            return [graph[a][b] for a, b in itertools.pairwise(round_trip)]
        if node in done:
            return []
        for other in graph.get(node, {}):
            if circle := walk(other, [*path, node]):
                return circle
        done.add(node)
        return []

    for node in list(graph):
        if circle := walk(node, []):
            return circle
    return []


def test_folders_and_files_stay_small_enough_to_read() -> None:
    count: dict[Path, int] = defaultdict(int)
    for file in modules().values():
        if file.name != "__init__.py":
            count[file.parent] += 1
        lines = len(file.read_text().splitlines())
        assert lines <= MOST_LINES, f"{file.relative_to(ROOT)} has {lines} lines"
    for folder, modules_in_it in count.items():
        rooms = sum(1 for sub in folder.iterdir() if (sub / "__init__.py").exists())
        assert modules_in_it + rooms <= MOST_SIDE_BY_SIDE, f"{folder.relative_to(ROOT)} has too many modules"


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_importable_in_a_clean_process(module: str) -> None:
    code = f"from {module} import {', '.join(PUBLIC[module])}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_every_room_of_the_code_stands_in_the_architecture_page() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    for package in PACKAGES:
        assert importlib.import_module(package).__doc__, f"{package} says nothing of itself"
        for room in (ROOT / package).iterdir():
            if (room / "__init__.py").exists():
                assert f"{room.name}/" in page, f"docs/architecture.md does not name {package}/{room.name}/"
