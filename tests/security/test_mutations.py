"""Descriptions, run folders and recipes do no harm when they are changed at random.

Every command is called in this process, since a start takes seconds. It ends with a documented exit code and
errors of one line; it connects to nothing, and writes nothing outside of the folders that it was given.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eval_suite.__main__ import main as eval_main
from isotorus.errors import exit_code
from pretrain.checkpoint.export.command import main as export_main
from pretrain.cost.plan_command import main as plan_main
from pretrain.sweep import main as sweep_main
from tests.eval_suite.eval_samples import CLASSES, pack, save_checkpoint
from tests.recipe import write_recipe

MINUTES = 10
"""How long the nightly test draws mutations."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
}
NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile"}


class Guard:
    """Notes what a command must not do: connections, programs, and changes outside of the given folders."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] | None = None
        """Folders that may be changed; None while no command runs."""
        self.harm: list[str] = []
        sys.addaudithook(self.watch)

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.allowed is None:
            return
        if event in NETWORK | PROGRAMS:
            self.harm.append(f"{event} {arguments}")
        elif (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        ) or event in CHANGES:
            self.check(event, arguments[0])

    def check(self, event: str, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.realpath(os.fsdecode(path))
            assert self.allowed is not None
            caches = "/__pycache__" in place or "/matplotlib" in place  # of compiled code and of fonts
            if not caches and not place.startswith((*self.allowed, "/dev/null", "/proc/")):
                self.harm.append(f"{event} {place}")

    @contextlib.contextmanager
    def only(self, *folders: Path) -> Iterator[None]:
        self.harm, self.allowed = [], tuple(str(folder.resolve()) for folder in folders)
        try:
            yield
        finally:
            self.allowed = None


@pytest.fixture(scope="module")
def guard() -> Guard:
    return Guard()


# Values that other fields have, and values that no field has.
numbers = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([2**15, 10**9, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
)
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *("hf-hub:a/b", "local-dir:/etc", "../../x", "/etc/passwd", "http://127.0.0.1:9/x", "\ud800"),
            *("sqlite:////tmp/x.db", "\0", "a" * 10**5, "javascript:1", "<script>", "resnet18", "gelu"),
        ]
    ),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(
    [
        *("pretrained", "pretrained_cfg", "checkpoint_path", "cache_dir", "features_only", "device"),
        *("depth", "num_heads", "embed_dim", "img_size", "patch_size", "global_pool", "norm_layer"),
        *("block_fn", "config", "projector", "views", "steps", "uri", "run_id", "<script>", "\ud800"),
    ]
)
raw = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"[" * 10**5, b"\xff\xfe", b"", b"null", b"[1]", b'{"step": 1e999}', b"a: &a [*a]"]),
)


def paths(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every entry in nested mappings and lists."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*before, key)
        if isinstance(inner, dict | list):
            yield from paths(inner, (*before, key))


@st.composite
def mutated(draw: st.DrawFn, original: Any) -> Any:
    """Return a copy of nested values with up to three entries changed, added or removed."""
    changed = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        *parents, last = draw(st.sampled_from(sorted(paths(changed), key=str)))
        place = changed
        for key in parents:
            place = place[key]
        how = draw(st.sampled_from(["change", "change", "remove", "add"]))
        if how == "remove" and len(place) > 1:
            del place[last]
        elif how == "add" and isinstance(place, dict):
            place[draw(keys)] = draw(values)
        else:
            place[last] = draw(values)
    return changed


@st.composite
def damages(draw: st.DrawFn) -> list[tuple[str, Any]]:
    """Return up to three changes of a run folder: the name of a file, and what it is instead."""
    names = ["metrics.jsonl", "config.yaml", "mlflow.json", "eval/7/results.json", "eval/7/.seal"]
    names += [
        f"checkpoints/step_00000007/{name}" for name in ("COMPLETE", "encoder.json", "encoder.safetensors")
    ]
    kinds = st.sampled_from(["pipe", "zero", "private", "circle", "folder", "gone"])
    rows = st.lists(st.dictionaries(st.sampled_from(["step", "loss", "lr", "\ud800"]), values), max_size=4)
    lines = rows.map(lambda found: "".join(json.dumps(row) + "\n" for row in found).encode())
    return draw(
        st.lists(st.tuples(st.sampled_from(names), st.one_of(kinds, raw, lines)), min_size=1, max_size=3)
    )


def apply(run: Path, name: str, what: Any, private: Path) -> None:
    """Put something else in the place of a file of a run."""
    file = run / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    if isinstance(what, bytes):
        file.write_bytes(what)
    elif what == "pipe":
        os.mkfifo(file)
    elif what == "folder":
        file.mkdir()
    elif what != "gone":
        file.symlink_to({"zero": "/dev/zero", "private": private, "circle": file.name}[what])


class World:
    """A stranger's run and a recipe, the folders that commands may write to, and a private file."""

    def __init__(self, home: Path, guard: Guard) -> None:
        self.home, self.guard = home, guard
        self.run = home / "given/run"
        save_checkpoint(self.run / "checkpoints/step_00000007")
        (self.run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
        (self.run / "config.yaml").write_text("name: run\n")
        (self.run / "mlflow.json").write_text(
            '{"uri": "http://127.0.0.1:9", "run_id": "a", "experiment": "b"}'
        )
        self.private = home / "private"
        self.private.write_text("c4n4ry: 1\n")
        self.data = pack(home / "data", [*CLASSES] * 6, seed=0)
        self.values = yaml.safe_load(write_recipe(self.data, home).read_text())
        self.options = [
            "--train",
            self.data,
            "--val",
            self.data,
            "--folds",
            "0",
            "--metrics",
            "knn",
            "--k",
            "3",
        ]
        self.options += ["--baselines", "", "--features", "embedding", "--workers", "0"]
        self.description = json.loads((self.run / "checkpoints/step_00000007/encoder.json").read_text())

    def fresh(self) -> Path:
        """Return a new folder with a copy of the run."""
        folder = Path(tempfile.mkdtemp(dir=self.home / "given"))
        shutil.copytree(self.run, folder / "run", symlinks=True)
        return folder

    def call(self, folder: Path, main: Any, *arguments: object, keep: bool = False) -> None:
        """Run a command that was given `folder`, and check what it did."""
        out, err, given = io.StringIO(), io.StringIO(), [str(x) for x in arguments]
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.MonkeyPatch.context() as patch,
            self.guard.only(folder, Path(os.environ["XDG_STATE_HOME"])),
        ):
            patch.chdir(folder)
            patch.setattr(sys, "dont_write_bytecode", True)
            patch.setattr(sys, "argv", ["command", *given])
            try:
                code = exit_code(lambda: main() if main is eval_main else main(given))
            except SystemExit as end:
                code = end.code
        said = err.getvalue()
        assert not self.guard.harm, self.guard.harm
        assert code in (0, 1, 2, 75) and "Traceback" not in said, (code, said)
        assert code != 2 or len([line for line in said.splitlines() if line.startswith("error: ")]) == 1, said
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                assert b"c4n4ry" not in file.read_bytes(), file
        assert "c4n4ry" not in out.getvalue() + said
        if not keep:
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, guard: Guard) -> World:
    return World(tmp_path_factory.mktemp("mutations"), guard)


def search(what: st.SearchStrategy[Any], examples: int, check: Any) -> None:
    """Draw and check so many values; the first failure is made small and raised."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=True,
    )
    @given(what)
    def attempt(value: Any) -> None:
        check(value)

    attempt()


def description(world: World, values: dict[str, Any]) -> None:
    """Export and evaluate a checkpoint whose description has these values."""
    folder = world.fresh()
    checkpoint = folder / "run/checkpoints/step_00000007"
    (checkpoint / "encoder.json").write_text(json.dumps(values))
    world.call(folder, export_main, checkpoint, folder / "exported", keep=True)
    world.call(folder, eval_main, checkpoint, *world.options)


def run_folder(world: World, changes: list[tuple[str, Any]]) -> None:
    """Evaluate a run some files of which are something else."""
    folder = world.fresh()
    for name, what in changes:
        apply(folder / "run", name, what, world.private)
    world.call(folder, eval_main, folder / "run", *world.options)


def recipe(world: World, chosen: tuple[Any, list[str]]) -> None:
    """Plan and list the runs of a recipe with some overrides."""
    folder = world.fresh()
    values, overrides = chosen
    content = values if isinstance(values, bytes) else json.dumps(values).encode()
    (folder / "recipe.yaml").write_bytes(content)
    world.call(folder, sweep_main, "--config", folder / "recipe.yaml", "--dry-run", *overrides, keep=True)
    world.call(folder, plan_main, "--config", folder / "recipe.yaml", "--gpus", "1")


OVERRIDE = st.builds(
    "{}={}".format, st.sampled_from(["name", "seed", "encoder.kwargs", "data.path", "x"]), texts
)
KINDS: dict[str, tuple[Any, Any]] = {
    "descriptions": (description, lambda world: mutated(world.description)),
    "run folders": (run_folder, lambda _: damages()),
    "recipes": (
        recipe,
        lambda world: st.tuples(mutated(world.values) | raw, st.lists(OVERRIDE, max_size=2)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_mutations(world: World, kind: str):
    check, what = KINDS[kind]
    search(what(world), 3, lambda value: check(world, value))


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_mutations_for_minutes(world: World, kind: str):
    check, what = KINDS[kind]
    until = time.monotonic() + MINUTES * 60 / len(KINDS)
    while time.monotonic() < until:
        search(what(world), 10, lambda value: check(world, value))
