"""The notebook of the studies runs from top to bottom, also on a study that is half done."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "analysis.ipynb"

PARTIAL = """\
name,objective,seed,failed,training/loss,val/knn,test/knn,test/probe,geometry/embedding/rank/eigenspectrum
a-0,a,0,,0.5,0.30,0.31,0.40,3 2 1
a-1,a,1,,0.4,0.32,0.33,0.42,3 2 1
b-0,b,0,,0.2,0.35,,,4 1 0.5
c-0,c,0,training: it diverged,,,,,
"""
"""An objective with seeds, one with its grid alone, and one that failed; no spectral gaps."""


def run(folder: Path) -> list[Any]:
    """Execute the notebook in a folder; return its code cells, with outputs. Raises if a cell does."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_and_figures(cells: list[Any]) -> tuple[str, int]:
    """Return all printed text, and the number of figures."""
    outputs = [output for cell in cells for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_runs_on_what_is_committed() -> None:
    text, figures = text_and_figures(run(NOTEBOOK.parent))
    assert figures >= 1
    assert "knn: torus less LeJEPA alone -2.3 points (-7.0 to +2.3)" in text  # as docs/torus.md has it


def test_the_notebook_draws_what_there_is_of_a_partial_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results.csv").write_text(PARTIAL)
    monkeypatch.setenv("STUDY", str(tmp_path))
    text, figures = text_and_figures(run(NOTEBOOK.parent))
    assert "3 runs of the study" in text
    assert "Not measured yet: geometry/embedding/graph/torus_ratio" in text
    assert figures == 4  # scores, loss, spectra, and the tori


def test_the_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
