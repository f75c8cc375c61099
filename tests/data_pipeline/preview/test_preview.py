"""The preview shows the views that the loader gives, and names what is wrong with the data."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from data_pipeline.__main__ import main
from data_pipeline.dataset.index import Dataset
from data_pipeline.loader import Loader
from data_pipeline.sources import DataConfig
from data_pipeline.transforms import augment
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from isotorus.errors import UserError
from tests.data_pipeline.pictures import picture
from tests.data_pipeline.preview.pages import Page

NASTY = "<b>x & y"
RECIPE = {
    "name": "a-run",
    "seed": 3,
    "data": {"path": "elsewhere", "batch_size": 8, "channels": 3},
    "views": {"global_size": 24, "local_views": 3, "local_size": 12, "local_scale": [0.1, 0.3]},
    "augment": {"vertical_flip": 0.25},
}


def pack(source: Path, dest: Path, *options: object) -> Path:
    assert main(["pack", str(source), str(dest), "--workers", "1", *map(str, options)]) == 0
    return dest


@pytest.fixture(scope="session")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """58 images of 40×48, split: copies within a class, across classes and of other size; black; rare."""
    folder = tmp_path_factory.mktemp("source")
    for name, count in (("dog", 25), (NASTY, 20)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(i + 100 * len(name)).save(folder / name / f"{i:02d}.png")
    for i in range(8):
        shutil.copy(folder / "dog" / f"{i:02d}.png", folder / "dog" / f"copy{i}.png")
    for i in range(2):
        shutil.copy(folder / "dog" / f"1{i}.png", folder / NASTY / f"wrong{i}.png")
    picture(320).resize((60, 50)).save(folder / "dog" / "smaller.jpg")
    (folder / "rare").mkdir()
    picture(7).save(folder / "rare" / "one.png")
    Image.new("RGB", (48, 40)).save(folder / "rare" / "black.png")
    dest = tmp_path_factory.mktemp("packed") / "split"
    return pack(folder, dest, "--labels", "folder", "--val-fraction", "0.4", "--allow-duplicates")


@pytest.fixture(scope="session")
def page(split: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return Page(write(split, folder / "page.html", "--config", folder / "recipe.yaml", "--samples", 9))


def write(shards: Path, out: Path, *options: object) -> str:
    assert main(["preview", str(shards), "--out", str(out), "--workers", "1", *map(str, options)]) == 0
    return out.read_text()


def test_nothing_is_fetched_and_names_are_text(page: Page) -> None:
    assert page.addresses and all(address.startswith("data:image/") for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"@import|url\(", page.html)
    assert NASTY in page.text and NASTY not in page.html


def test_the_views_are_those_that_training_gets(page: Page, split: Path) -> None:
    """A run's first epoch, in batches, with the augmentation on the whole batch."""
    sources = DataConfig(path=str(split / "train")).open()
    dataset = sources.datasets[0]
    mean, std = sources.statistics(3)
    views, augmentation = ViewsConfig(**RECIPE["views"]), AugmentConfig(**RECIPE["augment"])
    loader = iter(
        Loader(sources, batch_size=8, views=views, augment=augmentation, channels=3, seed=RECIPE["seed"])
    )
    seen: dict[str, list[np.ndarray]] = {}
    for batch in (next(loader) for _ in range(-(-len(dataset) // 8))):
        for place, (index, epoch) in enumerate(
            zip(batch.indices.tolist(), batch.epochs.tolist(), strict=True)
        ):
            if epoch == 0:
                seen[dataset.key(index)] = [
                    augment.apply(v.flatten(0, 1), p.flatten(0, 1), mean, std).unflatten(0, v.shape[:2])[
                        :, place
                    ]
                    for v, p in zip(batch.views, batch.parameters, strict=True)
                ]
    cards = page.cards()
    assert len({card.key for card in cards}) == 9
    for card in cards:
        for kind, expected in zip(("global", "local"), seen[card.key], strict=True):
            shown = np.stack(card.views[kind]) / 255
            expected = expected.permute(0, 2, 3, 1).numpy() * std + mean
            np.testing.assert_allclose(shown, expected, atol=0.6 / 255)


def test_the_frames_are_where_the_views_were_cut(split: Path, tmp_path: Path) -> None:
    """With nothing else changed, a view is its part of the original, resized."""
    off = {name: 0.0 for name in AugmentConfig.model_fields if "probability" in name or "flip" in name}
    recipe = RECIPE | {"augment": off, "views": RECIPE["views"] | {"global_size": 40, "local_size": 40}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    page = Page(write(split, tmp_path / "page.html", "--config", tmp_path / "recipe.yaml", "--samples", 9))
    for card in page.cards():
        assert {kind: len(boxes) for kind, boxes in card.boxes.items()} == {"global": 2, "local": 3}
        for kind, boxes in card.boxes.items():
            for view, (x, y, width, height) in zip(card.views[kind], boxes, strict=True):
                part = Image.fromarray(card.original[y : y + height, x : x + width])
                expected = np.asarray(part.resize((40, 40), Image.Resampling.BICUBIC), dtype=np.float64)
                assert np.abs(view - expected).mean() < 1


def test_the_classes_take_turns(page: Page, split: Path) -> None:
    dataset = Dataset(split / "train")
    there = {name: (dataset.labels == label).sum() for label, name in enumerate(dataset.classes)}
    assert there["dog"] > there[NASTY] + 3 > 9 and there["rare"] in (0, 1, 2)
    shown = [card.caption.split(" · ")[0] for card in page.cards()]
    assert shown.count("rare") == there["rare"]
    assert abs(shown.count("dog") - shown.count(NASTY)) <= 1


def test_what_is_wrong_with_the_data_is_said(page: Page, split: Path) -> None:
    sides = {name: dict(zip(*keys_and_hashes(split / name), strict=True)) for name in ("train", "val")}
    leaked = set(sides["train"].values()) & set(sides["val"].values())
    count = sum(value in leaked for value in sides["val"].values())
    assert count >= 2, "the split is such that copies are on both sides"
    assert f"{count} images of val also in another set" in page.text
    assert "2 groups of exact copies with different classes" in page.text
    assert "1 image of the sample with one value all over, 1 of them black: rare/black" in page.text
    assert "1 class with fewer than 10 images: rare (2)" in page.text
    assert "10 exact copies in all. 1 near copy among 58 images looked at" in page.text
    assert "a side below" not in page.text


def keys_and_hashes(path: Path) -> tuple[list[str], list[int]]:
    dataset = Dataset(path)
    return [dataset.key(i) for i in range(len(dataset))], [hash(dataset.read(i)) for i in range(len(dataset))]


def test_sixteen_bits_are_stretched_to_what_can_be_seen(tmp_path: Path) -> None:
    """Images of a camera that fills 12 of 16 bits, with a few hot pixels, and one image of 8 bits."""
    (tmp_path / "source").mkdir()
    for i in range(6):
        pixels = np.asarray(picture(i, 40, 48, "L")).astype(np.uint16) * 16
        pixels[0, :3] = 65_535
        Image.fromarray(pixels).save(tmp_path / "source" / f"{i}.png")
    picture(9, 40, 48, "L").save(tmp_path / "source" / "shallow.png")
    packed = pack(tmp_path / "source", tmp_path / "packed")
    page = Page(write(packed, tmp_path / "page.html", "--samples", 7))
    assert "1 channel (grey) · 16 bit" in page.text
    assert "Mixed depths in packed: 6 of 7 images have 16 bits" in page.text
    assert "stretched between the original's 1st and 99th percentile" in page.text
    for card in page.cards():
        source = np.asarray(Image.open(tmp_path / "source" / f"{card.key}.png"), dtype=np.float64)
        low, high = np.percentile(source, (1, 99))
        expected = ((source - low) / (high - low)).clip(0, 1) * 255
        np.testing.assert_allclose(card.original, expected, atol=1)
        assert np.std(card.views["global"]) > 10


def test_of_many_channels_all_are_shown(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for i in range(5):
        bands = [np.asarray(picture(10 * i + band, 40, 48, "L")) for band in range(5)]
        np.save(tmp_path / "source" / f"{i}.npy", np.stack(bands, axis=2))
    packed = pack(tmp_path / "source", tmp_path / "packed")
    page = Page(write(packed, tmp_path / "page.html", "--samples", 2))
    assert "Of the 5 channels the original shows the first three as red, green and blue;" in page.text
    assert page.html.count("<path") == 5
    for card in page.cards():
        source = np.load(tmp_path / "source" / f"{card.key}.npy").astype(np.float64)
        low, high = np.percentile(source, (1, 99), axis=(0, 1))
        shown = ((source - low) / (high - low)).clip(0, 1) * 255
        np.testing.assert_allclose(card.original, shown[..., :3], atol=1)
        (every,) = card.channels  # three and two, with white lines between them
        assert every.shape == (2 * 40 + 1, 3 * 48 + 2)
        for channel in range(5):
            top, left = channel // 3 * 41, channel % 3 * 49
            tile = every[top : top + 40, left : left + 48].astype(float)
            assert np.abs(tile - shown[..., channel]).mean() < 4  # it is a JPEG
        assert all(
            view.shape[1] / view.shape[0] == pytest.approx(1.5, abs=0.05) for view in card.views["global"]
        )


def test_damaged_and_tiny_images_and_no_labels(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for i in range(4):
        picture(i).save(tmp_path / "source" / f"{i}.png")
    Image.new("RGB", (1, 1), (200, 0, 0)).save(tmp_path / "source" / "dot.png")
    packed = pack(tmp_path / "source", tmp_path / "packed")
    dataset = Dataset(packed)
    damaged = next(i for i in range(5) if dataset.key(i) == "2")
    shard = packed / dataset.shard_name(0)
    data = bytearray(shard.read_bytes())
    data[int(dataset.rows["offset"][damaged]) + 60] ^= 1
    shard.write_bytes(data)

    text = Page(write(packed, tmp_path / "page.html")).text
    assert "5 images · no classes" in text
    assert f"1 image of the sample unreadable; first: shard {packed}" in text
    assert f"(sample {damaged})" in text
    assert "All images with a side below the 224 pixels of a global view (down to 1)" in text
    assert "1 image of the sample with one value all over, 0 of them black: dot" in text
    assert "No file is there twice." in text


def test_a_set_of_one_image(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    picture(0).save(tmp_path / "source" / "only.png")
    packed = pack(tmp_path / "source", tmp_path / "packed")
    assert len(Page(write(packed, tmp_path / "page.html", "--seed", -1)).cards()) == 1


def test_a_line_for_people_and_one_for_scripts(
    split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    write(split, out, "--samples", 1)
    assert re.fullmatch(
        rf"{out}: 10 exact copies, \d+ images in several sets, 1 near copy, \d warnings\n",
        capsys.readouterr().out,
    )
    write(split, out, "--samples", 1, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["page"], found["exact_copies"], found["near_copies"]) == (str(out), 10, 1)
    assert found["leaked"] >= 2 and "1 class with fewer than 10 images: rare (2)" in found["warnings"]


def test_a_packaged_recipe_by_name(split: Path, tmp_path: Path) -> None:
    page = Page(write(split, tmp_path / "page.html", "--config", "quickstart", "--samples", 1))
    assert "4 global at 64" in page.text and "The encoder sees 1 channel (grey)" in page.text
    assert re.search(r'<dd class="set">0.15 to 1</dd>', page.html)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("views: {global_sise: 32}", "unknown key 'views.global_sise'; did you mean 'views.global_size'?"),
        ("view: {global_size: 32}", "unknown key 'view'; did you mean 'views'?"),
        ("views: {global_size: none}", "views.global_size='none': input should be a valid integer"),
        ("views: {global_scale: [0.9, 0.2]}", "views.global_scale: expected 0 < low <= high, got 0.9, 0.2"),
        ("data: {channels: 4}", "data.channels=4, but the images in"),
        ("- 1", "expected keys and values, found list"),
        ("views: {", "is not YAML"),
    ],
)
def test_a_recipe_that_cannot_be(split: Path, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        main(
            [
                "preview",
                str(split),
                "--config",
                str(tmp_path / "recipe.yaml"),
                "--out",
                str(tmp_path / "p.html"),
            ]
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "p.html").exists()


@pytest.mark.parametrize(
    ("dest", "options", "said"),
    [
        ("nowhere", [], "there is no such folder"),
        (".", ["--config", "quickstarts"], "packaged recipes are"),
        (".", ["--out", "no/folder/page.html"], "expected a file in a folder that exists"),
        (".", ["--samples", "0"], "expected a whole number from 1"),
    ],
)
def test_what_cannot_be_previewed(
    split: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dest: str, options: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(said)):
        main(["preview", str(split / dest), "--out", "page.html", *options])


def test_it_opens_in_a_browser_at_both_widths(page: Page, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium to open the page in")
    (tmp_path / "page.html").write_text(page.html)
    # Chromium's narrowest window has 500 pixels, so the pages of a phone and a screen are in frames.
    script = (
        "onload = () => { document.title = [...document.querySelectorAll('iframe')].map(frame => {"
        "const d = frame.contentDocument, page = d.documentElement;"
        "return [d.images.length, page.clientWidth, page.scrollWidth <= page.clientWidth,"
        "[...d.images].every(i => i.naturalWidth > 0)].join(' ') }).join(', ') }"
    )
    frames = [
        f'<iframe src="page.html" style="border:0;width:{w}px;height:900px"></iframe>' for w in (390, 1200)
    ]
    (tmp_path / "frames.html").write_text(f"<script>{script}</script>{''.join(frames)}")
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--allow-file-access-from-files",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=4000",
            "--dump-dom",
            (tmp_path / "frames.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"<title>(.*?)</title>", done.stdout)
    assert found, done.stderr[-500:]
    images = page.tags.count("img")
    assert found[1] == f"{images} 390 true true, {images} 1200 true true"
    # The page forbids itself to fetch anything: the browser would report an attempt here.
    assert "CONSOLE" not in done.stderr


def test_turned_views_are_shown_with_their_angles(split: Path, tmp_path: Path) -> None:
    views = RECIPE["views"] | {"actions": ["rotation", "hue"], "turned": 4, "turned_size": 16}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"views": views}))
    page = Page(write(split, tmp_path / "page.html", "--config", tmp_path / "recipe.yaml", "--samples", 3))
    sources = DataConfig(path=str(split / "train")).open()
    dataset, size = sources.datasets[0], len(sources)
    config, augmentation = ViewsConfig(**views), AugmentConfig(**RECIPE["augment"])
    loader = Loader(
        sources, batch_size=size, views=config, augment=augmentation, channels=3, seed=RECIPE["seed"]
    )
    batch = next(iter(loader))
    keys = [dataset.key(i) for i in batch.indices.tolist()]
    assert "4 turned at 16" in page.text and "none" not in page.text.split("border")[0]
    for card, html in zip(page.cards(), page.html.split("<figure>\n<div class")[1:], strict=False):
        assert [len(card.views[kind]) for kind in ("global", "local", "turned")] == [2, 3, 4]
        degrees = batch.actions[2][:, keys.index(card.key)].rad2deg().round().int().tolist()
        expected = [f"rotation {rotation}°, hue {hue}°" for rotation, hue in degrees]
        assert re.findall(r"<small>(.*?)</small>", html) == expected
        corners = np.stack(card.views["turned"])[:, ::15, ::15].reshape(4, 4, 3).astype(int)
        assert (np.ptp(corners, axis=1) <= 1).all()  # outside the disc is one grey


@pytest.mark.parametrize(
    ("views", "channels", "said"),
    [
        ({"actions": ["hue", "hue"]}, 3, "views: actions names hue twice"),
        ({"actions": ["hue"], "turned": 0}, 3, "views.turned"),
        ({"turned": 5}, 3, "views: turned=5 needs actions"),
        ({"actions": ["hue"]}, 1, "has hue, which turns red, green and blue, but data.channels=1"),
    ],
)
def test_impossible_actions_are_one_line(
    split: Path, tmp_path: Path, views: dict, channels: int, said: str
) -> None:
    recipe = RECIPE | {"views": views, "data": {"path": "elsewhere", "channels": channels}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = ["--out", str(tmp_path / "x.html"), "--config", str(tmp_path / "recipe.yaml")]
    with pytest.raises(UserError, match=said) as refused:
        main(["preview", str(split), *options])
    assert "\n" not in str(refused.value)
