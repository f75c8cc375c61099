"""One run at a time in a run folder: who is refused, and which locks are taken over."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from isotorus.errors import UserError
from pretrain.run_control import lock
from pretrain.run_control.lock import hold
from tests.distributed.runs import ROOT

HOLD = "import sys, time; from pathlib import Path; from pretrain.run_control.lock import hold\n"
HOLD += "with hold(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"


def holder(folder: Path) -> "subprocess.Popen[str]":
    """Start a process that holds a run folder until it is killed."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def elsewhere(folder: Path) -> Path:
    """Write the lock file of a run on another machine, whose locks do not reach this one."""
    folder.mkdir(exist_ok=True)
    record = {"id": "x", "host": "node7", "pid": 4711, "since": "yesterday", "machine": "x", "launch": ""}
    (folder / "lock").write_text(json.dumps(record))
    return folder / "lock"


def test_the_second_is_refused_and_a_killed_holder_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lock, "_PATIENCE_SECONDS", 2.0)
    first = holder(tmp_path)
    with pytest.raises(UserError) as refused, hold(tmp_path):
        pass
    said = str(refused.value)
    assert f"{tmp_path} is being trained by process {first.pid} on {os.uname().nodename} since 2" in said
    assert "wait for it or stop it, or choose another name" in said and "\n" not in said
    first.kill()
    first.wait()
    # The folder is free, even if another process has that id now, and this host another name.
    (record := json.loads((tmp_path / "lock").read_text())).update(pid=os.getpid(), host="renamed")
    (tmp_path / "lock").write_text(json.dumps(record))
    with hold(tmp_path) as held:
        assert held.renew() == ""
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def test_on_another_machine_a_renewal_shows_that_the_holder_is_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock, "STALE_SECONDS", 5.0)
    living, dead = elsewhere(tmp_path / "living"), elsewhere(tmp_path / "dead")
    # The time in it does not matter: the clock of that machine is far ahead.
    os.utime(dead, (4e9, 4e9))
    ended = threading.Event()

    def renew() -> None:
        stamp = 1e9
        while not ended.wait(0.3):
            stamp -= 1  # its clock goes backwards
            os.utime(living, (stamp, stamp))

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(UserError, match="trained by process 4711 on node7 since yesterday"):
            lock.Lock(living)
    finally:
        ended.set()
        renewing.join()
    with hold(tmp_path / "dead") as held:
        assert held.renew() == ""
        # If the old holder was only unreachable, it now learns that it has lost the folder.
        elsewhere(tmp_path / "dead")
        assert held.renew() == "process 4711 on node7 since yesterday"


def test_a_lock_that_a_server_keeps_for_a_dead_machine_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lock, "STALE_SECONDS", 2.0)
    server = holder(tmp_path)
    try:
        elsewhere(tmp_path)
        with hold(tmp_path) as held:
            assert held.renew() == ""
    finally:
        server.kill()
        server.wait()


def test_rank_0_on_another_machine_after_an_elastic_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = elsewhere(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"launch": "job"}))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(lock, "STALE_SECONDS", 600.0)  # longer than a test may take
    with hold(tmp_path) as held:
        assert held.renew() == ""
