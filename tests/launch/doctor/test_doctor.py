"""`launch doctor` finds no fault on sound hosts, and names each fault with the host that has it."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml

from isotorus.errors import exit_code
from launch import __main__ as launcher
from launch.doctor import gpus, links, machine
from launch.doctor.findings import Finding, Status
from tests.distributed.runs import ENVIRONMENT
from tests.launch.network import Network, network

DOCTOR = [sys.executable, "-m", "launch", "doctor", "--json"]


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the findings by check."""
    assert done.stdout, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout)["checks"]:
        found.setdefault(row["check"], []).append(row)
    return found


def failed(found: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """Return the hosts of each check that failed."""
    bad = [row for each in found.values() for row in each if row["status"] == "failed"]
    return {row["check"]: row["hosts"] for row in bad}


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=280, **options)


@pytest.mark.nightly
def test_all_is_well_on_one_node(recipe: Path):
    before = sorted(recipe.parent.iterdir())
    done = run([*DOCTOR, "--nproc-per-node", "2", "--config", str(recipe)])
    found = rows(done)
    assert failed(found) == {} and done.returncode == 0, done.stdout
    assert {check for check, each in found.items() if each[0]["status"] == "ok"} >= {
        "versions", "all-reduce", "write access", "disk room", "data",
    }  # fmt: skip
    assert {check for check, each in found.items() if each[0]["status"] == "not applicable"} >= {
        "links", "clocks", "shared folder", "MLflow",
    }  # fmt: skip
    assert sorted(recipe.parent.iterdir()) == before, "it leaves something behind"


def test_every_fault_is_a_row(recipe: Path, tmp_path: Path):
    """There are several faults at once, and no message hides another."""
    shards = tmp_path / "damaged"
    shutil.copytree(_shards(recipe), shards)
    first = min(shards.glob("*.tar"))
    first.write_bytes(bytes(first.stat().st_size))
    server = "http://127.0.0.1:9"
    changes = [f"data.path={shards}", "runs=/proc/nowhere", "tracking.enabled=true", f"tracking.uri={server}"]
    options = [*DOCTOR, "--config", str(recipe), *changes, "steps=1000000000", "checkpoint.every=1"]
    done = run(["sh", "-c", 'ulimit -n 512 && exec "$@"', "sh", *options])
    found = rows(done)
    assert done.returncode == 1
    assert failed(found).keys() == {"open files", "write access", "disk room", "data", "MLflow"}
    assert str(first) in found["data"][0]["found"]
    assert "512 files" in found["open files"][0]["found"]
    assert "/proc/nowhere" in found["write access"][0]["found"]
    assert server in found["MLflow"][0]["found"]


@pytest.mark.nightly
def test_each_host_is_named(recipe: Path, tmp_path: Path):
    """Three hosts: one has other shards, its own small run folder and few open files, another a slow link."""
    with network(tmp_path, 3) as net:
        runs, shards = recipe.parent / "runs", _shards(recipe)
        runs.mkdir()
        other = tmp_path / "other"
        shutil.copytree(shards, other)
        last = max(other.glob("*.tar"))
        last.write_bytes(bytes(last.stat().st_size))
        private = f"mount --bind {other} {shards} && mount -t tmpfs -o size=64k tmpfs {runs} && ulimit -n 512"
        _restart(net, 2, private)
        slow = ["tc", "qdisc", "add", "dev", "port3", "root", "tbf", "rate", "100mbit"]
        slow += ["burst", "64kb", "latency", "200ms"]
        subprocess.run(["ip", "netns", "exec", net._switch, *slow], check=True)

        options = ["--hosts", str(net.hostfile()), "--config", str(recipe)]
        done = run(net.on(1, *DOCTOR, *options))
        found = rows(done)
        assert done.returncode == 1
        assert failed(found) == {
            "open files": ["node2"],
            "links": ["node3"],
            "shared folder": ["node2"],
            "disk room": ["node2"],
            "data": ["node2"],
        }, done.stdout
        assert last.name in found["data"][0]["found"]
        assert found["clocks"][0]["status"] == "ok"
        assert "node3" in found["links"][0]["found"]


@pytest.mark.nightly
def test_hosts_that_are_not_there_are_rows(recipe: Path, tmp_path: Path):
    """One host is cut off and the ranks of one fail: the others are checked, and there is no traceback."""
    with network(tmp_path, 3) as net:
        options = ["--hosts", str(net.hostfile()), "--config", str(recipe), "--patience", "30"]
        done = run(net.on(1, *DOCTOR, *options))
        # The measured speed of links varies, because other processes use the same cores.
        assert failed(rows(done)).keys() <= {"links"}, done.stdout

        broken = tmp_path / "rank.py"
        broken.write_text("raise SystemExit('libcuda is missing')\n")
        _restart(net, 2, f"mount --bind {broken} {Path.cwd()}/launch/doctor/rank.py")
        net.cut(3)
        done = run(net.on(1, *DOCTOR, *options))
        found = rows(done)
        assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
        assert failed(found) == {"ssh": ["node3"], "start": ["node2"]}, done.stdout
        assert "libcuda is missing" in found["start"][0]["found"]
        assert found["data"][0]["status"] == "ok"


@pytest.mark.nightly
def test_a_command_a_node(recipe: Path):
    """As srun starts it: the first node prints for all."""
    options = ["--nnodes", "2", "--rdzv-endpoint", "127.0.0.1:29533", "--config", str(recipe)]
    started = [
        subprocess.Popen(
            [*DOCTOR, *options, "--node-rank", str(node)], stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        for node in range(2)
    ]
    said = [process.communicate(timeout=280)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert json.loads(said[0])["hosts"] == ["node 0", "node 1"] and said[1] == b""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--nnodes", "2"], "give each node its --node-rank from 0 to 1"),
        (["--nnodes", "2", "--node-rank", "2", "--rdzv-endpoint", "a:1"], "--node-rank from 0 to 1"),
        (["--nnodes", "2", "--node-rank", "0", "--rdzv-endpoint", "a"], "--rdzv-endpoint a: expected HOST"),
        (["--hosts", "nowhere"], "host file nowhere: No such file"),
        (["data.path=x"], "data.path=x: there is no recipe to change"),
    ],
)
def test_bad_options_are_one_line(options: list[str], expected: str, capsys: Any, monkeypatch: Any):
    monkeypatch.setattr(sys, "argv", ["launch", "doctor", *options])
    assert exit_code(launcher.main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and expected in error


def by_status(found: list[Finding], status: Status) -> list[str]:
    return [host for finding in found if finding.status == status for host in finding.hosts]


def test_another_version_is_named():
    usual = {"torch": "2.15.0", "driver": "590.1", "own code": "aa"}
    facts = {"a": usual, "b": usual | {"torch": "2.14.0"}, "c": usual | {"driver": "580.9"}}
    found = machine.judge_versions(facts)
    assert by_status(found, Status.FAILED) == ["b"] and by_status(found, Status.WARNING) == ["c"]
    assert "torch 2.14.0; the others have 2.15.0" in found[0].found
    assert [finding.status for finding in machine.judge_versions({"a": usual, "b": usual})] == [Status.OK]


GPU = {
    "index": "0", "uuid": "GPU-1", "name": "NVIDIA H100", "driver_version": "590.1",
    "memory.total": "81559", "memory.used": "4", "temperature.gpu": "35",
    "ecc.errors.uncorrected.volatile.total": "0",
    **{f"clocks_throttle_reasons.{why}": "Not Active" for why in
       ("hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "processes", "status", "expected"),
    [
        ({}, [], Status.OK, "1 × NVIDIA H100"),
        ({"ecc.errors.uncorrected.volatile.total": "2"}, [], Status.FAILED, "2 uncorrected ECC errors"),
        ({"memory.used": "20000"}, [], Status.FAILED, "19.5 of 79.6 GiB"),
        ({}, [{"pid": "7", "uuid": "GPU-1", "name": "python"}], Status.FAILED, "python (7)"),
        ({"temperature.gpu": "91"}, [], Status.WARNING, "91 °C"),
        ({"clocks_throttle_reasons.hw_slowdown": "Active"}, [], Status.WARNING, "hw_slowdown"),
        ({"ecc.errors.uncorrected.volatile.total": "[N/A]"}, [], Status.OK, "no errors"),
    ],
)
def test_gpus(changes: dict[str, str], processes: list[dict[str, str]], status: Status, expected: str):
    well = {"gpus": [GPU], "processes": [], "xid": ""}
    facts = {"a": well, "b": well | {"gpus": [GPU | changes], "processes": processes}}
    found = gpus.judge(facts, {"a": 1, "b": 1})
    assert [finding.status for finding in found] == [status]
    assert expected in found[0].found and found[0].hosts == ([] if status == Status.OK else ["b"])
    assert gpus.judge({"a": well}, {"a": 2})[0].status == Status.FAILED


def test_a_slow_host_and_a_slow_pair_are_distinguished():
    def facts(pairs: dict[tuple[str, str], float], ahead: float = 0.0) -> dict[str, Any]:
        hosts = sorted({host for pair in pairs for host in pair})
        rates = {**pairs, **{(b, a): rate for (a, b), rate in pairs.items()}}
        return {
            host: {
                "all_reduce": {"rates": {"1048576": 1.0}, "latency": 1e-4},
                "pairs": {other: rates[host, other] for other in hosts if other != host},
                "ahead": ahead if host == "c" else 0.0,
            }
            for host in hosts
        }

    quick = dict.fromkeys(itertools.combinations("abcd", 2), 10.0)
    assert all(finding.status == Status.OK for finding in links.judge(facts(quick)))
    of_c = quick | {pair: 1.0 for pair in quick if "c" in pair}
    assert by_status(links.judge(facts(of_c)), Status.FAILED) == ["c"]
    found = links.judge(facts(quick | {("a", "d"): 1.0}))
    assert by_status(found, Status.FAILED) == [] and by_status(found, Status.WARNING) == ["a", "d"]
    assert by_status(links.judge(facts(quick, ahead=20.0)), Status.WARNING) == ["c"]
    assert by_status(links.judge(facts(quick, ahead=-400.0)), Status.FAILED) == ["c"]


@pytest.mark.parametrize("hosts", range(2, 9))
def test_every_two_hosts_meet_once_and_at_the_same_time(hosts: int):
    order = [links._partners(own, hosts) for own in range(hosts)]
    assert all(
        sorted(met) == [other for other in range(hosts) if other != own] for own, met in enumerate(order)
    )
    waiting = {own: list(met) for own, met in enumerate(order)}
    while any(waiting.values()):
        ready = [own for own, met in waiting.items() if met and waiting[met[0]][:1] == [own]]
        assert ready, "all wait for one another"
        for own in ready:
            waiting[own].pop(0)


def test_little_shared_memory():
    facts = {"a": {"shared": 64 * 2**20, "files": 65536, "cpus": 64, "load": 0.1}}
    found = {finding.check: finding for finding in machine.judge(facts, {"a": 8}, workers=4)}
    assert found["shared memory"].status == Status.FAILED and found["shared memory"].hosts == ["a"]
    assert found["open files"].status == found["CPUs"].status == Status.OK
    assert machine.judge(facts, {"a": 8}, workers=0)[0].status == Status.WARNING


@pytest.mark.parametrize(
    ("compiles", "with_gpus", "status"),
    [(True, True, Status.FAILED), ("auto", False, Status.WARNING), (False, True, Status.WARNING)],
)
def test_a_host_without_a_compiler(compiles: Any, with_gpus: bool, status: Status, monkeypatch: Any):
    with_one = machine.measure()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    without = machine.measure()
    facts = {"a": with_one, "b": without}
    (finding,) = machine.judge_compiler(facts, compiles, with_gpus)
    assert (finding.status, finding.hosts) == (status, ["b"]) and "apt install g++" in finding.remedy
    (finding,) = machine.judge_compiler({"a": with_one}, compiles, with_gpus)
    assert finding.status == Status.OK and finding.found.startswith("/")
    assert machine.judge_compiler({"b": without}, False, False)[0].status == Status.SKIPPED


def _send(rank: int, store: Path, rates: Any) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(store), 2), rank=rank, world_size=2)
    links.PAIRS = (2**12, 2**16, 2**20)
    device = torch.device("cpu")
    for longest in (15.0, 0.0):
        rates.put((longest, rank, links._pair(1 - rank, device, longest)))
    dist.destroy_process_group()


def test_both_hosts_of_a_pair_measure_the_same_rate(tmp_path: Path):
    """Both skip the same sizes too: otherwise one would wait for the other for ever."""
    rates: Any = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_send, (tmp_path / "store", rates), nprocs=2)
    found = {(longest, rank): rate for longest, rank, rate in (rates.get() for _ in range(4))}
    for longest in (15.0, 0.0):
        assert found[longest, 0] == found[longest, 1] > 0


def _shards(recipe: Path) -> Path:
    return Path(yaml.safe_load(recipe.read_text())["data"]["path"])


def _restart(net: Network, number: int, prepare: str) -> None:
    """Restart a node's sshd after the command `prepare`, whose mounts and limits are for this sshd only."""
    net.crash(number)
    net.join(number)
    etc = f"/etc/netns/{net.nodes[number - 1].namespace}/ssh/sshd_config"
    command = net.on(number, "sh", "-c", f"{prepare} && exec /usr/sbin/sshd -f {etc}")
    subprocess.run(command, check=True, env=os.environ)
