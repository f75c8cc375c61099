"""A rank finds its GPU, or one line says why not; it stays on the cores near the GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isotorus.errors import MachineError
from pretrain.run_control.device import choose_index, gpus_per_task, parse_cores, why_no_gpu


@pytest.mark.parametrize(
    ("local_rank", "ranks", "devices", "per_task", "is_task", "index"),
    [
        (3, 4, 4, 0, False, 3),  # torchrun: all ranks see all GPUs
        (3, 4, 4, 1, True, 3),  # srun --gpus-per-task=1 --gpu-bind=none: the same
        (3, 4, 1, 1, True, 0),  # srun --gpus-per-task=1: each rank sees its own
        (3, 4, 1, 0, True, 0),  # mpirun with a wrapper that does the same
        (0, 1, 4, 0, False, 0),  # one process on a workstation
    ],
)
def test_a_rank_takes_its_gpu(
    local_rank: int, ranks: int, devices: int, per_task: int, is_task: bool, index: int
):
    assert choose_index(local_rank, ranks, devices, per_task, is_task) == index


@pytest.mark.parametrize(
    ("ranks", "devices", "per_task", "is_task", "said"),
    [
        (2, 2, 2, True, "each rank has 2 GPUs, and a rank uses one; use --gpus-per-task=1"),
        (1, 2, 2, False, "each rank has 2 GPUs"),
        (4, 2, 0, True, "4 processes on a node with 2 GPU"),
        (2, 1, 0, False, "2 processes on a node with 1 GPU"),
    ],
)
def test_gpus_that_do_not_fit_the_ranks(ranks: int, devices: int, per_task: int, is_task: bool, said: str):
    with pytest.raises(MachineError, match=said) as error:
        choose_index(0, ranks, devices, per_task, is_task)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value", "count"),
    [
        ("SLURM_GPUS_PER_TASK", "2", 2),
        ("SLURM_GPUS_PER_TASK", "h100:2", 2),
        ("SLURM_TRES_PER_TASK", "cpu=8,gres/gpu=2", 2),
        ("SLURM_TRES_PER_TASK", "gres/gpu:h100:4", 4),
        ("SLURM_TRES_PER_TASK", "cpu=8", 0),
        ("PATH", "/bin", 0),
    ],
)
def test_gpus_that_slurm_gives_a_task(name: str, value: str, count: int):
    assert gpus_per_task({name: value}) == count


def test_a_gpu_that_does_not_start():
    text = "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized"
    said = why_no_gpu(f"CUDA initialization: {text} (Triggered internally at x.cpp:1.)")
    assert said.startswith("CUDA does not start on ") and "Error 802: system not yet initialized; see" in said


def test_all_threads_stay_on_the_cores_near_the_gpu():
    cores = os.sched_getaffinity(0)
    near = min(cores)
    code = (
        "import os, threading\n"
        "from pathlib import Path\n"
        "from pretrain.run_control.device import bind, parse_cores\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "bind(parse_cores('100000-100003'))\n"  # none of its own: nothing changes
        f"assert os.sched_getaffinity(0) == {cores}\n"
        f"bind(parse_cores('{near},100000-100003\\n'))\n"
        "threads = [int(thread.name) for thread in Path('/proc/self/task').iterdir()]\n"
        f"assert len(threads) > 1 and all(os.sched_getaffinity(t) == {{{near}}} for t in threads)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert parse_cores("0-3,8") == {0, 1, 2, 3, 8} and parse_cores("\n") == set()


SHOW = (
    "import os, pretrain.run_control.surroundings as s\n"
    "s.set_surroundings()\n"
    "print({name: os.environ.get(name) for name in %s})"
)


def surroundings(**given: str) -> dict[str, str | None]:
    """Return the variables of a process that started with those in `given`."""
    names = [
        "PYTORCH_ALLOC_CONF",
        "THP_MEM_ALLOC_ENABLE",
        "OMP_WAIT_POLICY",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
    ]
    environment = {key: value for key, value in os.environ.items() if key not in names} | given
    code = SHOW % names
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    found: dict[str, str | None] = eval(done.stdout)
    return found


def test_variables_are_set_where_the_user_has_set_none(tmp_path: Path):
    folder = tmp_path / f"isotorus-{os.getuid()}"
    found = surroundings(TMPDIR=str(tmp_path), TRITON_CACHE_DIR="/mine")
    assert found == {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "THP_MEM_ALLOC_ENABLE": "1",
        "OMP_WAIT_POLICY": "passive",
        "TRITON_CACHE_DIR": "/mine",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }
    assert folder.stat().st_mode & 0o777 == 0o700
    older = surroundings(
        TMPDIR=str(tmp_path), PYTORCH_CUDA_ALLOC_CONF="backend:native", THP_MEM_ALLOC_ENABLE="0"
    )
    assert older["PYTORCH_ALLOC_CONF"] is None and older["THP_MEM_ALLOC_ENABLE"] == "0"


@pytest.mark.parametrize("how", ["open to others", "a link", "a file"])
def test_code_is_not_loaded_from_a_folder_of_others(how: str, tmp_path: Path):
    folder = tmp_path / f"isotorus-{os.getuid()}"
    if how == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    elif how == "a link":
        (tmp_path / "other").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "other")
    else:
        folder.touch()
    assert surroundings(TMPDIR=str(tmp_path))["TRITON_CACHE_DIR"] is None
