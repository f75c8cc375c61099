"""What a process prints at its end."""

import subprocess
import sys


def test_libraries_imported_while_the_collector_pauses_print_nothing_at_the_end() -> None:
    """Triton's library counts its objects when the process ends, and says which were not collected."""
    code = (
        "from isotorus.processes import collector_paused\n"
        "with collector_paused():\n"
        "    import triton.compiler"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")
