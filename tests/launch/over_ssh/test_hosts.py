"""Host files, what of the environment travels, and commands over a real ssh."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from isotorus.errors import UserError
from isotorus.secrets import masked_command, masked_variables, may_be_secret
from launch.environment import passed_on
from launch.over_ssh.hosts import Host, read_hosts
from tests.launch.network import Network, network


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("network"), 2) as made:
        yield made


def test_hosts_in_order_with_include_and_exclude(tmp_path: Path):
    path = tmp_path / "hosts"
    path.write_text("# ours\nb slots=2\n\na  slots=4 # the big one\nc slots=1\n")
    assert read_hosts(str(path)) == [Host("b", 2), Host("a", 4), Host("c", 1)]
    assert read_hosts(str(path), include="a,b") == [Host("b", 2), Host("a", 4)]
    assert read_hosts(str(path), exclude="a,b") == [Host("c", 1)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a slots=2\nb slots=1\na slots=2\n", "line 3: host a is in line 1 already"),
        ("a slots=2\nb slots=0\n", "line 2: host b has slots=0"),
        ("a slots=-1\n", "line 1: host a has slots=-1"),
        ("a slots=two\n", "host a has slots=two"),
        ("a\n", "host a has no slots"),
        ("a slots=1 fast\n", "host a has slots=1 fast"),
        ("-oProxyCommand=true slots=1\n", "is no host"),
        ("# nothing\n", "names no host"),
        ("a slots=1\n", "host z is not in"),
    ],
)
def test_bad_host_file_is_one_line_with_the_host(tmp_path: Path, text: str, said: str):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_hosts(str(path), exclude="z" if "z is" in said else "")
    assert said in str(error.value) and str(path) in str(error.value)


def test_missing_and_binary_host_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match="host file"):
            read_hosts(str(path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_hosts(str(tmp_path / "binary"))


def test_what_travels_and_what_is_shown_of_it():
    environment = {
        "NCCL_DEBUG": "INFO",
        "AWS_SECRET_ACCESS_KEY": "s3cr3t",
        "MLFLOW_TRACKING_URI": "https://me:s3cr3t@mlflow.example/x",
        "HOME": "/root",
        "MINE": "1",
        "CUDA_VISIBLE_DEVICES": "0",
        "TORCHELASTIC_RUN_ID": "7",
    }
    given = passed_on(["MINE"], environment)
    assert given == {k: environment[k] for k in sorted(given)}
    assert set(given) == {"NCCL_DEBUG", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_URI", "MINE"}
    assert (
        "s3cr3t" not in str(masked_variables(given))
        and "mlflow.example" in masked_variables(given)["MLFLOW_TRACKING_URI"]
    )
    assert (
        may_be_secret("HF_TOKEN")
        and may_be_secret("mlflow_tracking_password")
        and not may_be_secret("NCCL_DEBUG")
    )
    with pytest.raises(UserError, match="HUSH: it is not set"):
        passed_on(["HUSH"], environment)
    with pytest.raises(UserError, match="give only the name") as error:
        passed_on(["HUSH=s3cr3t"], environment)
    assert "s3cr3t" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "AWS_SECRET_ACCESS_KEY=s3cr3t",
        "export HF_TOKEN='s3cr3t and more'",
        "tool --api-key s3cr3t --x 1",
        "tool --password=s3cr3t",
        "tracking.uri=http://me:s3cr3t@host:5000",
        "s3://me:s3cr3t@bucket",
        "https://s3cr3t@host/x?token=s3cr3t",
    ],
)
def test_secrets_are_masked_in_text(text: str):
    assert "s3cr3t" not in masked_command(text) and "***" in masked_command(text)
    assert (
        masked_command("python -m pretrain --config x.yaml name=a")
        == "python -m pretrain --config x.yaml name=a"
    )


ASK = (
    "import sys; from isotorus.errors import exit_code; from launch.over_ssh import ssh\n"
    "def main():\n"
    "    answers = ssh.run(sys.argv[2:], 'hostname; cat', stdin='by stdin', ssh=sys.argv[1].split())\n"
    "    print([tuple(a) for a in answers]); return 0\n"
    "sys.exit(exit_code(main))"
)


def ask(nodes: Network, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(nodes.on(1, sys.executable, "-c", ASK, *arguments), capture_output=True, text=True)


def test_commands_reach_all_nodes_over_ssh(nodes: Network):
    done = ask(nodes, "ssh", "node2", "node1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[('node2', 0, 'node2\\nby stdin', ''), ('node1', 0, 'node1\\nby stdin', '')]\n"


@pytest.mark.parametrize(
    ("ssh", "host", "said"),
    [
        ("ssh", "nowhere", "host nowhere: ssh: Could not resolve"),
        ("ssh -oGlobalKnownHostsFile=/dev/null", "node2", "host node2: Host key verification failed"),
        ("ssh -oIdentityFile=/dev/null -F/dev/null -oGlobalKnownHostsFile=/etc/ssh/ssh_known_hosts", "node2",
         "Permission denied"),
        ("ssh -p 1", "node2", "Connection refused"),
    ],
)  # fmt: skip
def test_what_ssh_cannot_do_is_one_line_with_the_host(nodes: Network, ssh: str, host: str, said: str):
    done = ask(nodes, ssh, host)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert said in done.stderr and f"host {host}: " in done.stderr


def test_a_node_off_the_network_is_named_and_comes_back(nodes: Network):
    nodes.cut(2)
    try:
        done = ask(nodes, "ssh -oConnectTimeout=2", "node1", "node2")
    finally:
        nodes.join(2)
    assert done.returncode == 2 and done.stderr.startswith("error: host node2: ssh: connect to host node2")
    assert ask(nodes, "ssh", "node2").returncode == 0
