"""Counts that are kept on disk are those that were counted, or are counted again."""

from pathlib import Path

import pytest

from pretrain.cost import remembered
from pretrain.cost.activation_memory import _Setting

KEPT = {("forward", "activations"): 1 / 3, ("backward", "workspace"): 2.0**60}
SETTING = _Setting(((2, 224),), 3, 8, "none", False, "cuda", True, False, False, False, False)


class Counter:
    """Counts how often it is asked; a new one has no memory, like a new process."""

    def __init__(self) -> None:
        self.times = 0

        @remembered.remembered
        def count(name: str, setting: _Setting) -> dict[tuple[str, str], float]:
            self.times += 1
            return {key: x * setting.images for key, x in KEPT.items()}

        self.count = count


def test_a_count_is_read_by_the_next_process(tmp_path: Path):
    for times in (1, 0):
        counter = Counter()
        with remembered.kept_in(tmp_path):
            for _ in range(2):
                assert counter.count("vit", SETTING) == {key: 8 * x for key, x in KEPT.items()}
        assert counter.times == times
    outside = Counter()
    outside.count("vit", SETTING)
    assert outside.times == 1


def test_other_arguments_other_code_and_damaged_files_are_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def times(setting: _Setting = SETTING, name: str = "vit") -> int:
        counter = Counter()
        with remembered.kept_in(tmp_path):
            assert counter.count(name, setting)["forward", "activations"] == setting.images / 3
        return counter.times

    assert times() == 1
    assert times(SETTING._replace(images=9)) == 1 and times(name="other") == 1
    assert times() == times(SETTING._replace(images=9)) == times(name="other") == 0
    for content in (b"", b"[]", b'{"asked": 1}', b"\xff", b'{"asked": "other", "found": []}'):
        for file in tmp_path.rglob("*.json"):
            file.write_bytes(content)
        assert times() == 1 and times() == 0
    monkeypatch.setattr(remembered, "code", lambda: "changed")
    assert times() == 1 and times() == 0


def test_a_folder_that_cannot_be_written_to_is_no_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with remembered.kept_in(tmp_path / "file"):
        assert Counter().count("vit", SETTING)
