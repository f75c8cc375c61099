"""The ranks of one node: `python -m launch.doctor.node NUMBER`, a `Request` and variables on its stdin."""

import json
import os
import subprocess
import sys
from dataclasses import replace

from launch.doctor.request import VARIABLE, Request


def run(request: Request, node: int) -> int:
    """Start them, and wait; their exit code. What they say is this process's."""
    first = request.firsts[node]
    command = [sys.executable, "-m", "launch.doctor.rank"]
    ranks = []
    for rank in range(first, first + request.ranks[node]):
        environment = os.environ | {VARIABLE: replace(request, rank=rank).to_json()}
        ranks.append(subprocess.Popen(command, env=environment))
    try:
        return max(rank.wait() for rank in ranks)
    finally:
        for process in ranks:
            process.kill()


def main() -> int:
    given = json.loads(sys.stdin.readline())
    os.environ.update(given["environment"])
    return run(Request(**given["request"]), int(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
