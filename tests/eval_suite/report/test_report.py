"""report.html and comparison.html need no network and escape names."""

import copy
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval_suite.report import comparison
from eval_suite.report.over_seeds import Evaluated


class Page(HTMLParser):
    """The addresses a page would fetch, its text, its tags, and the cells of its tables by row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.summary: list[str] = []
        self._in_summary = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_summary |= dict(attrs).get("class") == "summary"
        if tag == "li" and self._in_summary:
            self.summary.append("")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td") and self.rows:
            self.rows[-1].append("")
            self.in_cell = True
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "data")]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_summary and self.summary:
            self.summary[-1] += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in_summary = self._in_summary and tag != "ul"
        self.in_cell = self.in_cell and tag not in ("th", "td")


@pytest.fixture
def page(evaluated) -> Page:
    return Page(evaluated.report)


def test_nothing_is_fetched_from_anywhere(page: Page, evaluated):
    assert len(page.addresses) > 36
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", evaluated.report)
    assert len(evaluated.report) < 5_000_000


def test_names_from_users_are_text(page: Page, evaluated):
    assert "<b>x</b>" in page.text
    assert "<b>x</b>" not in evaluated.report
    assert "$plain_1" in page.text
    assert "tiny <i>run</i>" in page.text
    assert "</pre><script>alert(1)</script>" in page.text


def test_every_section_is_there(page: Page):
    for heading in (
        "Scores on the test split",
        "Training",
        "The embedding in two dimensions",
        "Nearest neighbours",
        "few labels, and retrieval",
        "The linear probe by class",
        "Geometry of the features",
        "How many directions the embedding uses",
        "Configuration of the training",
    ):
        assert heading in page.text
    for caption in (
        "loss",
        "prediction",
        "sigreg",
        "learning rate",
        "throughput",
        "PCA",
        "t-SNE",
        "effective rank",
    ):
        assert caption in page.text
    # Six scores, eleven curves, two graphs, four maps, a spectrum; six queries, five neighbours.
    assert page.tags.count("svg") == 24
    assert page.tags.count("img") == 36


def test_it_begins_with_a_few_lines_that_end_with_something_to_try(page: Page):
    first = [line.split()[0] for line in page.summary]
    assert len(first) <= 5 and first[:2] == ["good", "health"] and first[-1] == "try"
    assert "95\u00a0% interval" in page.summary[0]
    assert "isotorus train --config" in page.summary[-1] or "isotorus export" in page.summary[-1]


def test_eight_charts_of_the_log_are_shown_at_once_and_the_others_folded(evaluated):
    section = evaluated.report.split("<h2>Training</h2>")[1].split("</section>")[0]
    at_once, folded = section.split("<details>")
    assert (at_once.count("<figure>"), folded.count("<figure>")) == (8, 3)
    assert "3 more charts" in folded
    assert "docs/healthy-run.md" in at_once and "healthy: 1 to 3" in at_once


def test_a_checkpoint_outside_a_run_has_no_curves(checkpoint: Path, data, command):
    assert command(checkpoint, *data, "--metrics", "rank", "--baselines", "untrained").code == 0
    text = Page((checkpoint / "eval" / "7" / "report.html").read_text()).text
    assert "Training" not in text
    assert "they were not requested" in text


def test_what_augmented_views_say_is_a_row_of_each_encoder(page: Page, evaluated):
    rows = {cells[0]: cells[1:] for cells in page.rows if cells}
    measured = evaluated.results["representations"]
    for title, key in (
        ("LiDAR, of augmented views", "lidar"),
        ("alignment of augmented views (same: 0)", "alignment"),
    ):
        assert all("views" in measured[name] for name in ("pretrained", "untrained"))
        assert rows[title] == [
            f"{of['views'][key]:.4g}" if "views" in of else "–" for of in measured.values()
        ]


def opened(page: str, folder: Path, width: int) -> str:
    """Open the page in a frame of that width; return its number of figures, if it fits, if pictures load."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium to open the page in")
    # Chromium's narrowest window has 500 pixels, so the page of a phone is in a frame.
    script = (
        "onload = () => { const d = document.querySelector('iframe').contentDocument;"
        "const page = d.documentElement;"
        "document.title = [d.querySelectorAll('svg').length, page.scrollWidth <= page.clientWidth,"
        "[...d.images].every(i => i.naturalWidth > 0)].join(' ') }"
    )
    folder.mkdir()
    (folder / "page.html").write_text(page)
    frame = f'<iframe src="page.html" style="border:0;width:{width}px;height:900px"></iframe>'
    (folder / "frame.html").write_text(f"<script>{script}</script>{frame}")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            f"--user-data-dir={folder / 'profile'}",
            "--virtual-time-budget=4000",
            "--dump-dom",
            (folder / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found, done.stderr[-500:]
    return found[1]


@pytest.mark.parametrize("width", [390, 1200])
def test_it_opens_in_a_browser_at_both_widths(evaluated, tmp_path: Path, width: int):
    assert opened(evaluated.report, tmp_path / "page", width) == "24 true true"


@pytest.mark.parametrize("width", [390, 1200])
def test_the_comparison_opens_at_both_widths(evaluated, tmp_path: Path, width: int):
    long = "a-run-whose-name-says-everything-that-was-chosen-for-it-lr=0.0001-weight=0.05"
    several = []
    for name in ("tiny", long):
        for step in (1000, 2000, 3000, 4000):
            results = copy.deepcopy(evaluated.results)
            results["checkpoint"] |= {"name": name, "step": step, "folder": f"runs/{name}/{step}"}
            several.append(Evaluated(results, tmp_path / f"runs/{name}/eval/{step}"))
    comparison.write(comparison.compare(several), tmp_path / "runs/eval")
    figures, *sound = opened(
        (tmp_path / "runs/eval/comparison.html").read_text(), tmp_path / "p", width
    ).split()
    assert int(figures) >= 5 and sound == ["true", "true"]
