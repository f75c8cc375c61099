import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("seed", [0, 1])
def test_mutated_tars_are_indexed_or_refused_and_never_do_harm(seed: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.data_pipeline.tar_mutants", str(seed), "60", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT)
    assert done.returncode == 0, (done.stdout[-100:], done.stderr)
    assert int(done.stdout.splitlines()[-1].split()[0]) > 12  # most of the mutants would test nothing
