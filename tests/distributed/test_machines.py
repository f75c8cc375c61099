"""What a machine cannot do is one line, exit code 2, once for all ranks; what was decided is written down."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.distributed.runs import ENVIRONMENT, ROOT, train

PORT = 29561


def refused(recipe: Path, *overrides: str, nodes: tuple[int, ...] = (1,), **variables: str) -> str:
    """Start the ranks of `nodes` as a scheduler would, by variables; return the one error of them all."""
    ranks = []
    for size in nodes:
        for local in range(size):
            numbers = {"RANK": len(ranks), "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": size}
            numbers |= {"WORLD_SIZE": sum(nodes), "MASTER_PORT": PORT, "PMI_RANK": len(ranks)}
            environment = ENVIRONMENT | {key: str(x) for key, x in numbers.items()} | variables
            command = [sys.executable, "-m", "pretrain", "--config", str(recipe), *overrides]
            ranks.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=environment | {"MASTER_ADDR": "127.0.0.1"},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
    said = "".join(rank.communicate(timeout=250)[1] for rank in ranks)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert [rank.returncode for rank in ranks] == [2] * len(ranks), said
    assert len(errors) == 1 and "Traceback" not in said, said
    return errors[0].removeprefix("error: ")


def test_nodes_with_different_numbers_of_ranks(recipe: Path):
    said = refused(recipe, "engine.kind=fsdp", "engine.shard=node", nodes=(2, 1))
    assert said.startswith("engine.shard=node needs as many ranks on each node, these have 1 and 2; use")


def test_fp8_without_a_gpu_for_it(recipe: Path):
    said = refused(recipe, "engine.precision=fp8", nodes=(2,), CUDA_VISIBLE_DEVICES="")
    assert said.endswith("(such as H100 or L40S), here is no GPU; use engine.precision=bf16")


OLD_DRIVER = """
int cuDriverGetVersion(int *version) { *version = 12020; return 0; }
int cuInit(unsigned flags) { return 0; }
"""


@pytest.mark.nightly
@pytest.mark.skipif(torch.version.cuda is None or torch.cuda.is_available(), reason="needs CUDA and no GPU")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_a_driver_that_is_older_than_torch(recipe: Path, tmp_path: Path):
    """A library in the driver's place says that it is of CUDA 12.2, and CUDA itself refuses it."""
    library = [*("gcc", "-shared", "-fPIC", "-x", "c", "-", "-o"), tmp_path / "libcuda.so.1"]
    subprocess.run(library, input=OLD_DRIVER.encode(), check=True)
    before = {"LD_LIBRARY_PATH": str(tmp_path)}
    said = refused(recipe, nodes=(2,), **before)
    assert said.startswith(f"the NVIDIA driver of {socket.gethostname()} is for CUDA 12.2, older than this ")
    assert said.endswith("or set CUDA_VISIBLE_DEVICES= to train on CPUs")
    done = train(1, recipe, "steps=1", environment=before | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr


def test_no_compiler(recipe: Path):
    """compile=true is an error, and auto does without."""
    said = refused(recipe, "engine.compile=true", PATH="/nowhere")
    assert said.startswith("engine.compile=true cannot compile here: there is no C++ compiler; install one")
    done = train(1, recipe, "engine.compile=auto", "steps=1", environment={"PATH": "/nowhere"})
    assert done.returncode == 0, done.stderr


@pytest.mark.nightly
def test_what_auto_was_is_logged_and_written(recipe: Path, tmp_path: Path):
    given = ["engine.packed=auto", "engine.compile=auto", "engine.shard=node", "engine.precision=auto"]
    done = train(2, recipe, *given, "steps=1", environment={"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("engine.packed=auto is true") == 1, "once for all ranks"
    written = (tmp_path / "runs/tiny/config.yaml").read_text()
    head = [line for line in written.splitlines() if line.startswith("# ")]
    assert {"# engine.packed=auto is true", "# engine.compile=auto is false"} <= set(head)
    assert len(head) == 4
    engine = yaml.safe_load(written)["engine"]
    assert (engine["packed"], engine["shard"]) == ("auto", "node"), "a run on other machines decides anew"
