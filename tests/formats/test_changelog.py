"""CHANGELOG.md names the versions of the files that the code writes."""

import re
from pathlib import Path
from typing import get_args, get_type_hints

from data_pipeline.dataset import description
from data_pipeline.decoders.pixels import NEWEST_RULES
from eval_suite import results
from eval_suite.features import representation
from eval_suite.report import certified
from eval_suite.vectors.about import About
from finetune import compare
from pretrain.models.description import EncoderDescription

ROOT = Path(__file__).parents[2]
WRITTEN = {
    "`dataset.json` of a data set, with its tables": description.FORMAT,
    "pixels of a data set": NEWEST_RULES,
    "`encoder.json` of a checkpoint": get_args(get_type_hints(EncoderDescription)["format"])[0],
    "`results.json`": results.FORMAT,
    "`results.json` of a fine-tuning": compare.FORMAT,
    "`certificate.json`": certified.FORMAT,
    "vectors of `embed`": About.model_fields["format"].default,
    "cached features of `eval`": representation.FORMAT,
}
"""The files of the table that have a number, and the number in the code."""


def test_the_table_has_the_versions_of_the_code():
    rows = re.findall(r"^\| (.+?) \| (\d+) \|", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {name: int(number) for name, number in rows} == WRITTEN


def test_the_version_of_the_package_has_a_section():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and f"\n## {version[1]} " in (ROOT / "CHANGELOG.md").read_text()
