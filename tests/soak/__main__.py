"""Train for hours under random faults, in pieces, and check that nothing is lost and nothing grows.

    python -m tests.soak run FOLDER --minutes 60      # as root; give it again to go on where it ended
    python -m tests.soak check FOLDER [--figure curve.svg]

Two ranks train on two hosts (network namespaces), started over ssh from a third one, which also has an S3
store with the images and the run's mirror. Faults come at random: SIGKILL of a rank or of the launcher,
SIGTERM, a host that loses its power or its network, a store that fails. After each the same command is given
again. FOLDER/events.jsonl has a line for each fault and start, FOLDER/samples.jsonl one a minute. FOLDER must
not lie in /tmp, because the processes see an empty /tmp of their own, so that their files can be counted.

`check` trains the same steps without faults, and compares the losses of all of them.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

PRIVATE = "ISOTORUS_SOAK_PRIVATE"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("do", choices=["run", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=60, help="of this piece (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--figure", type=Path, help="draw the curves into this file")
    given = parser.parse_args()
    folder = given.folder.resolve()
    if folder.is_relative_to("/tmp"):
        parser.error("FOLDER must not lie in /tmp")
    if given.do == "check":
        from tests.soak.check import check

        return check(folder, given.figure)
    if PRIVATE not in os.environ:
        os.environ[PRIVATE] = "1"
        # All processes end with this one, however it ends. The shell is the one that orphans are left to.
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        shell = ["sh", "-c", '"$@"; exit $?', "sh"]
        os.execvp("unshare", [*unshare, *shell, sys.executable, "-m", "tests.soak", *sys.argv[1:]])
    Path("/etc/netns").mkdir(exist_ok=True)
    for place in ("/tmp", "/dev/shm", "/run", "/etc/netns"):
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)
    from tests.soak.piece import Piece

    with Piece(folder, given.seed) as piece:
        piece.go_on(given.minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
