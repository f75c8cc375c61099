"""The far end of a launch over ssh: `python -m launch.over_ssh.node`, told by its stdin what to do.

The first line is a request in JSON: so neither secrets nor anything else of it stands in a process list.
Each line after it is a signal's name, or nothing but a sign of life. When they end, or there is silence, who
launched is gone: the ranks are asked to save and to end, and what is left then is killed.
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

from launch.one_node import deepspeed_ranks, torchrun_ranks
from launch.over_ssh import hosts_agree

REPORT = "isotorus report: "
"""Begins the last line of stdout, of which the rest is JSON."""


def main() -> int:
    # Unbuffered, as what comes after it is waited for by `select`.
    request = json.loads(open(0, "rb", buffering=0, closefd=False).readline())  # noqa: SIM115
    if request["do"] == "signal":
        deepspeed_ranks.pass_on(request["id"], signal.Signals[request["signal"]])
        return 0
    if request["do"] == "probe":
        print(REPORT + json.dumps(hosts_agree.look(request)), flush=True)
        return 0
    held = _hold(request["id"])
    if held is None:
        report: dict[str, Any] = {
            "code": torchrun_ranks.TRY_AGAIN,
            "rank": -1,
            "said": "the launch before still ends",
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
    print(f"\n{REPORT}{json.dumps(report)}", flush=True)
    return int(report["code"])


def obey(patience: float, grace: float) -> None:
    """Do what stdin says; at its end, or after `patience` seconds of silence, end all within `grace`."""
    while select.select([0], [], [], patience)[0]:
        said = os.read(0, 4096).decode()
        if not said:
            break
        for line in said.split():
            if line == "KILL":
                end()
            os.kill(os.getpid(), getattr(signal, f"SIG{line}"))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    end()


def end() -> None:
    """Kill all that this process started, and itself."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(torchrun_ranks.TRY_AGAIN)


def _hold(launch: str) -> socket.socket | None:
    """A name that is this process's own until it ends; None while an earlier start of the launch has it."""
    held = socket.socket(socket.AF_UNIX)
    try:
        held.bind(f"\0isotorus-{launch}-{socket.gethostname()}")
    except OSError:
        return None
    return held


if __name__ == "__main__":
    sys.exit(main())
