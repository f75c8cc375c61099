"""Hosts that are cut off from a network of three hosts (network namespaces), with one rank on each."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from pretrain.run_control.reach import Reach
from tests.distributed.runs import ENVIRONMENT, ROOT
from tests.launch.network import Network, network

SECONDS = 3
RANK = f"""
import time
import torch.distributed as dist
from pretrain.run_control.reach import Reach
dist.init_process_group("gloo")
reach = Reach(dist.distributed_c10d._get_default_store(), {SECONDS})
reason = ""
print("ready", flush=True)
while not reason:
    reach.join()
    reason = reach.look()
    time.sleep(0.1)
print(reason, flush=True)
reach.give_up()
time.sleep(2)
"""


def start(nodes: Network, number: int, folder: Path) -> "subprocess.Popen[bytes]":
    """Start rank `number` - 1 on node `number`; all ranks meet at node1."""
    ranks = {"RANK": str(number - 1), "WORLD_SIZE": "3", "MASTER_ADDR": "node1", "MASTER_PORT": "29555"}
    with (folder / f"said{number}").open("w") as file:
        return subprocess.Popen(
            nodes.on(number, sys.executable, "-c", RANK),
            cwd=ROOT,
            env=ENVIRONMENT | ranks | {"GLOO_SOCKET_IFNAME": "eth0"},
            stdout=file,
        )


@pytest.mark.nightly
def test_a_host_cut_off_is_gone_and_a_stopped_process_is_not(tmp_path: Path):
    def said(number: int) -> str:
        return (tmp_path / f"said{number}").read_text().removeprefix("ready").strip()

    with network(tmp_path, 3, ssh=False) as nodes:
        ranks = [start(nodes, number, tmp_path) for number in (1, 2, 3)]
        while not all((tmp_path / f"said{number}").read_text() for number in (1, 2, 3)):
            assert not any(rank.poll() for rank in ranks)
            time.sleep(0.1)
        time.sleep(1)  # the ranks connect
        os.kill(ranks[1].pid, signal.SIGSTOP)
        time.sleep(2.5 * SECONDS)
        assert [said(number) for number in (1, 2, 3)] == ["", "", ""]
        os.kill(ranks[1].pid, signal.SIGCONT)
        nodes.cut(3)
        began = time.monotonic()
        for rank in ranks:
            rank.wait(60)
        print(f"noticed {time.monotonic() - began - 2:.1f} s after the host was cut off, allowed {SECONDS}")
    assert said(1) == f"node3, the host of rank 2, has not answered for stopping.unreachable={SECONDS} s"
    assert said(2) == "another rank has given up"
    assert said(3) == f"node1, the host of rank 0, has not answered for stopping.unreachable={SECONDS} s"


def test_a_rank_introduces_itself_in_pieces_and_strangers_are_closed():
    store = dist.HashStore()
    reach = Reach(store, SECONDS)
    address, port, token, _ = json.loads(store.get("isotorus/reach"))

    def connect() -> socket.socket:
        connection = socket.create_connection((address or "localhost", port), timeout=10)
        reach.look()
        return connection

    rank = connect()
    for piece in (f"{token} 1 no", "de2\n"):
        rank.sendall(piece.encode())
        assert reach.look() == ""
    strangers = [connect() for _ in range(70)]
    assert strangers[0].recv(1) == b""  # closed
    reach.give_up()
    assert rank.recv(1) == b"!"
    strangers[-1].setblocking(False)
    with pytest.raises(BlockingIOError):  # open
        strangers[-1].recv(1)
    for connection in (rank, *strangers):
        connection.close()
