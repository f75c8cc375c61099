"""The file of thumbnails by which near copies are found."""

import subprocess
import sys
from pathlib import Path


def test_a_disk_without_room_is_said_in_one_line(tmp_path: Path) -> None:
    """Without it a page that finds no room ends the process by a signal."""
    program = """
import resource, sys
from pathlib import Path
from data_pipeline.dataset.near_copies import thumbnails
from isotorus.errors import exit_code
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(exit_code(lambda: thumbnails.create(Path(sys.argv[1]), 1000)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.npy")], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "writing thumbnails to the folder for temporary files (TMPDIR): File too large" in done.stderr
