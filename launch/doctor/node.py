"""Start the check-up's ranks of one node: `python -m launch.doctor.node NUMBER`.

Stdin holds one line of JSON with a `Request` and environment variables.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

from launch.doctor.findings import VARIABLE, Request


def run(request: Request, node: int) -> int:
    """Start the ranks of a node, wait for them, and return the largest exit code. They share our output."""
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
    message = json.loads(sys.stdin.readline())
    os.environ.update(message["environment"])
    return run(Request(**message["request"]), int(sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
