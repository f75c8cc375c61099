"""The part of a launch that runs on each host: `python -m launch.over_ssh.node`, controlled through stdin.

The first line of stdin is a request in JSON, so that its secrets are in no process list. Each further line is
the name of a signal, or empty, which shows that the launching command is alive. If stdin ends or stays
silent, that command has ended; the ranks are then asked to save and end, and killed if they do not end.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from isotorus.errors import TRY_AGAIN
from launch.one_node import deepspeed_ranks, torchrun_ranks
from launch.over_ssh import hosts_agree

REPORT = "isotorus report "
"""Begins the line of stdout that holds a report; the mark of the request and the report in JSON follow it.
The mark is a random number of the launcher. The ranks, which write to the same stdout, do not know it."""


def main() -> int:
    # Unbuffered, because `obey` waits for the next lines by `select`, which does not see a buffer.
    request = json.loads(open(0, "rb", buffering=0, closefd=False).readline())  # noqa: SIM115
    if request["do"] == "signal":
        deepspeed_ranks.pass_on(request["id"], signal.Signals[request["signal"]])
        return 0
    if request["do"] == "measure":
        print(f"{REPORT}{request['mark']}: {json.dumps(hosts_agree.measure(request))}", flush=True)
        return 0
    lock = _lock(request["id"])
    if lock is None:
        report: dict[str, Any] = {
            "code": TRY_AGAIN,
            "rank": -1,
            "message": "the previous start of this launch has not ended yet",
        }
    else:
        os.environ.update(request["environment"])
        threading.Thread(target=obey, args=(request["patience"], request["grace"]), daemon=True).start()
        if request["launcher"] == "deepspeed":
            logs = Path(request["logs"])
            failure = deepspeed_ranks.run(request["options"], request["pretrain"], logs)
        else:
            failure = torchrun_ranks.run(request["options"], request["pretrain"])
        report = failure._asdict() if failure else {"code": 0}
    print(f"\n{REPORT}{request['mark']}: {json.dumps(report)}", flush=True)
    return int(report["code"])


def obey(patience: float, grace: float) -> None:
    """Send the signals that stdin names to this process, and end it within `grace` seconds if stdin stops.

    Stdin has stopped if it is closed or silent for `patience` seconds.
    """
    while select.select([0], [], [], patience)[0]:
        text = os.read(0, 4096).decode()
        if not text:
            break
        for line in text.split():
            if line == "KILL":
                end()
            os.kill(os.getpid(), getattr(signal, f"SIG{line}"))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    end()


def end() -> None:
    """Kill all processes that this process started, then exit."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(TRY_AGAIN)


def _lock(launch: str) -> socket.socket | None:
    """Lock a launch on this host until this process ends. Return None if an earlier start holds the lock."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0isotorus-{launch}-{socket.gethostname()}")
    except OSError:
        return None
    return lock


if __name__ == "__main__":
    sys.exit(main())
