"""Crops of a physical size, on images whose pixels are known functions of the place in millimetres."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from scipy.stats import kstest

from data_pipeline.__main__ import main
from data_pipeline.dataset import spacing
from data_pipeline.dataset.index import Dataset
from data_pipeline.loader import Loader
from data_pipeline.sources import Sources
from data_pipeline.transforms import physical
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from data_pipeline.transforms.exact_crop import exact_crop
from data_pipeline.transforms.physical import Square, check_square, check_views
from data_pipeline.transforms.turned_crop import turned_crop
from data_pipeline.transforms.views import center_view, cut, draw
from data_pipeline.verifying.verify import verify
from isotorus.errors import UserError, exit_code
from tests.data_pipeline.encoders import npy

RULER = 100.0
"""Millimetres over which the brightness of a ruler rises from black to white."""
CONFIG = ViewsConfig(
    scale_by="spacing", unit="mm", physical_size=(20, 60), global_size=32, local_size=16, local_views=3
)


def picture(
    of: Callable[..., np.ndarray], height: float, width: float, rows: float, columns: float
) -> np.ndarray:
    """Return the uint16 image (H, W, 1) of a scene whose brightness is a function of mm down and right."""
    y = (np.arange(round(height / rows)) + 0.5) * rows
    x = (np.arange(round(width / columns)) + 0.5) * columns
    return np.rint(of(y[:, None], x[None]) * 65_535).astype(np.uint16)[..., None]


def ruler(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 0 * y + x / RULER


def scene(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.25 * np.sin(2 * np.pi * x / 23) + 0.25 * np.cos(2 * np.pi * (x + 2 * y) / 31)


def views(
    image: np.ndarray, spacing_: tuple[float, float] | None, seed: int, config: ViewsConfig = CONFIG
) -> list[torch.Tensor]:
    out = [torch.empty((r.views, 1, r.size, r.size), dtype=torch.uint16) for r in config.resolutions()]
    cut(np.random.default_rng(seed), npy(image), config, (0, 0), out, spacing=spacing_)
    return out


@pytest.mark.parametrize("spacing_", [(0.5, 0.5), (0.4, 0.7)])
def test_a_crop_of_a_ruler_has_the_stated_size(spacing_: tuple[float, float]) -> None:
    """The slope of the brightness in a view says how many millimetres a pixel of the view is."""
    down, right = (
        picture(lambda y, x: 0 * x + y / RULER, 90, 90, *spacing_),
        picture(ruler, 90, 90, *spacing_),
    )
    for seed in range(5):
        drawn = draw(np.random.default_rng(seed), *right.shape[:2], CONFIG, (0, 0), spacing_)
        sets = zip(
            CONFIG.resolutions(),
            drawn,
            views(right, spacing_, seed),
            views(down, spacing_, seed),
            strict=True,
        )
        for r, crops, across, along in sets:
            assert r.sides is not None
            for crop, a, b in zip(crops, across, along, strict=True):
                side = crop.box[2] * spacing_[0]
                assert crop.box[3] * spacing_[1] == pytest.approx(side)
                assert r.sides[0] * 0.999 <= side <= r.sides[1] * 1.001
                inner = slice(3, -3)
                for x in (a[0].double().mean(0), b[0].double().mean(1)):
                    slope = np.polyfit(np.arange(r.size)[inner], x[inner].numpy() / 65_535 * RULER, 1)[0]
                    assert slope * r.size == pytest.approx(side, rel=2e-3)


def test_two_pictures_of_one_scene_give_equal_crops() -> None:
    fine, coarse, uneven = ((0.25, 0.25), (0.5, 0.5), (0.3, 0.6))
    for seed in range(4):
        made = [views(picture(scene, 90, 120, *each), each, seed) for each in (fine, coarse, uneven)]
        for first, second, third in zip(*made, strict=True):
            for other in (second, third):
                assert (first.double() - other.double()).abs().max() < 0.004 * 65_535
    assert not torch.equal(made[0][0][0], made[0][0][1])


@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True)])
def test_exact_crops_are_turned_crops_without_a_turn(mirrored: tuple[bool, bool]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    for box in ((3.3, 10.7, 40.1, 35.9), (0.0, 0.0, 50.0, 70.0), (20.5, 30.5, 5.2, 4.1)):
        one, other = exact_crop(image, box, mirrored, 16), turned_crop(image, box, mirrored, 16)
        assert (one.int() - other.int()).abs().max() <= 1 and one.float().std() > 5


def test_sides_are_drawn_by_their_logarithm_up_to_the_size_of_the_image() -> None:
    rng = np.random.default_rng(0)
    sides = np.array([physical.box(rng, 100, 300, (1.0, 1.0), (20, 500))[2] for _ in range(4000)])
    uniform = np.log(sides / 20) / math.log(100 / 20)
    assert kstest(uniform, "uniform").pvalue > 1e-3
    boxes = np.array([physical.box(rng, 100, 300, (1.0, 0.5), (20, 50)) for _ in range(2000)])
    assert (boxes >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= [100, 300]).all()
    assert kstest(boxes[:, 0] / (100 - boxes[:, 2]), "uniform").pvalue > 1e-3


def test_local_views_have_pixels_as_far_apart_unless_said_otherwise() -> None:
    def sides(**fields: object) -> list[tuple[float, float] | None]:
        return [r.sides for r in CONFIG.model_copy(update=fields).resolutions()]

    assert sides() == [(20, 60), (10, 30)]
    assert sides(local_physical_size=(5, 6)) == [(20, 60), (5, 6)]
    assert sides(scale_by="area", physical_size=None) == [None, None]


def test_images_without_spacing_or_too_small_are_cropped_by_area() -> None:
    image = picture(scene, 30, 30, 0.5, 0.5)
    area = ViewsConfig(global_size=32, local_size=16, local_views=3)
    for spacing_ in (None, (0.3, 0.3)):  # 18 mm are less than the smallest crop
        for made, expected in zip(views(image, spacing_, 1), views(image, None, 1, area), strict=True):
            assert torch.equal(made, expected)


def test_the_middle_is_seen_at_the_stated_size() -> None:
    for each in ((0.5, 0.5), (0.4, 0.8)):
        image = picture(ruler, 60, 96, *each)
        seen = center_view(image, 30, Square(30, "mm", "refuse"), each)[0].double().mean(0) / 65_535 * RULER
        np.testing.assert_allclose(seen, 33 + np.arange(30) + 0.5, atol=0.1)
        whole = center_view(image, 30, Square(500, "mm", "refuse"), each)[0].double().mean(0) / 65_535 * RULER
        np.testing.assert_allclose(whole[2:-2], (18 + 2 * np.arange(30) + 1)[2:-2], atol=0.1)
    assert torch.equal(center_view(image, 30, Square(30, "mm", "area"), None), center_view(image, 30))
    assert physical.whole_square(CONFIG) == Square(pytest.approx(math.sqrt(20 * 60)), "mm", "refuse")
    larger = CONFIG.model_copy(update={"whole_size": 48})
    assert physical.whole_square(larger).side == pytest.approx(1.5 * math.sqrt(20 * 60))
    assert physical.whole_square(ViewsConfig()) is None


@pytest.mark.parametrize(
    "columns, expected",
    [
        ({"spacing": [0.5, 0.25], "spacing_unit": "um"}, (5e-4, 2.5e-4)),
        ({"spacing": "0.5", "spacing_unit": "µm"}, (5e-4, 5e-4)),
        ({"spacing": "[2, 3]", "spacing_unit": "cm"}, (20, 30)),
        ({"spacing": 10, "spacing_unit": "m"}, (1e4, 1e4)),
        ({"spacing": [1, 2], "spacing_unit": "pixel"}, None),
        ({"spacing": [1, 2]}, None),
        ({"spacing": [1, -2], "spacing_unit": "mm"}, None),
        ({"spacing": "wide", "spacing_unit": "mm"}, None),
        ({"spacing": [1, 1, 5], "spacing_unit": "mm"}, None),
        ({"spacing_unit": "mm"}, None),
        ({}, None),
    ],
)
def test_columns_state_the_spacing(columns: dict, expected: tuple[float, float] | None) -> None:
    table = np.array([spacing.row(columns)], spacing.ROW)
    in_mm = spacing.in_unit(table, "mm")[0]
    np.testing.assert_allclose(in_mm, expected or (np.nan, np.nan), rtol=1e-6)
    np.testing.assert_allclose(spacing.in_unit(table, "um")[0], in_mm * 1e3)
    assert np.isnan(spacing.in_unit(table, "arcsec")).all()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"scale_by": "spacing"}, "needs unit"),
        ({"scale_by": "spacing", "unit": "mm"}, "needs physical_size"),
        ({"physical_size": (1, 2)}, "scale_by=spacing only"),
        ({"unscaled": "area"}, "scale_by=spacing only"),
        ({"scale_by": "spacing", "unit": "mm", "physical_size": (2, 1)}, "low <= high"),
        ({"scale_by": "spacing", "unit": "inch", "physical_size": (1, 2)}, "arcsec"),
        (
            {"scale_by": "spacing", "unit": "mm", "physical_size": (1, 2), "actions": ["shift_x"]},
            "whole images",
        ),
    ],
)
def test_settings_that_say_no_size_are_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ViewsConfig(**fields)


def write_ome(path: Path, rows: float, columns: float, unit: str = "mm", seed: int = 0) -> None:
    image = picture(lambda y, x: scene(y + seed, x), 90, 90, rows, columns)[..., 0]
    metadata = {"axes": "YX", "PhysicalSizeY": rows, "PhysicalSizeX": columns}
    metadata |= {"PhysicalSizeYUnit": unit, "PhysicalSizeXUnit": unit}
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, image, ome=True, metadata=metadata)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two OME-TIFF files of one scene at two spacings."""
    folder = tmp_path_factory.mktemp("known")
    write_ome(folder / "in/fine.ome.tif", 0.25, 0.25)
    write_ome(folder / "in/uneven.ome.tif", 0.5, 0.3)
    assert exit_code(lambda: main(["pack", str(folder / "in"), str(folder / "set"), "--workers", "1"])) == 0
    return Dataset(folder / "set")


def test_pack_keeps_the_spacing_and_append_adds_to_it(known: Dataset, tmp_path: Path, capsys) -> None:
    keys = [known.key(i) for i in range(2)]
    table = spacing.in_unit(spacing.read(known), "mm")
    expected = {"fine_ome": [0.25, 0.25], "uneven_ome": [0.5, 0.3]}
    np.testing.assert_allclose(table, [expected[key.replace(".", "_")] for key in keys], rtol=1e-6)
    assert known.description.spacing == 2 and verify(known.path, 1) == []

    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in/plain.npy", np.zeros((20, 20), np.uint16))
    np.save(tmp_path / "in/listed.npy", np.ones((20, 20), np.uint16))
    (tmp_path / "t.csv").write_text("image,label,spacing,spacing_unit\nplain.npy,,,\nlisted.npy,,2.5,um\n")
    options = ["--labels", str(tmp_path / "t.csv"), "--workers", "1"]
    call = ["pack", str(tmp_path / "in"), str(tmp_path / "set"), *options]
    assert exit_code(lambda: main(call)) == 0
    dataset = Dataset(tmp_path / "set")
    assert sorted(spacing.read(dataset)["kind"]) == [0, 1] and dataset.description.spacing == 1
    write_ome(tmp_path / "more/a.ome.tif", 0.5, 0.5)
    more = ["pack", str(tmp_path / "more"), str(tmp_path / "set"), "--append", "--workers", "1"]
    assert exit_code(lambda: main(more)) == 0
    assert sorted(spacing.read(Dataset(tmp_path / "set"))["kind"]) == [0, 1, 1]
    assert sorted(spacing.read(Dataset(tmp_path / "set", generation=1))["kind"]) == [0, 1]
    file = tmp_path / "set/spacing.npy"
    np.save(file, np.load(file)[:2])
    assert any("spacing.npy" in line for line in verify(str(tmp_path / "set"), 1))


def test_the_loader_crops_each_image_by_its_own_spacing(known: Dataset) -> None:
    """Both files show one scene, so that equal random numbers give equal views."""
    loader = Loader(
        Sources([known], [1.0]), batch_size=2, views=CONFIG, augment=AugmentConfig(), channels=1, seed=3
    )
    batch = next(iter(loader))
    for slot, i in enumerate(batch.indices.tolist()):
        height, width = known.pixels(i, None, None).shape[:2]
        own = spacing.in_unit(spacing.read(known), "mm")[i]
        assert loader.spacing(batch, slot, height, width) == pytest.approx(tuple(own))
        for crops, r in zip(loader.crops(batch, slot, height, width), CONFIG.resolutions(), strict=True):
            sides = np.array([crop.box[2:] for crop in crops]) * own
            np.testing.assert_allclose(sides[:, 0], sides[:, 1])
            assert (sides >= r.sides[0] * 0.999).all() and (sides <= r.sides[1] * 1.001).all()


def test_images_that_do_not_fit_are_counted_and_refused(known: Dataset, tmp_path: Path, caplog) -> None:
    check_views(CONFIG, [known])
    check_square(physical.whole_square(CONFIG), known)
    with pytest.raises(UserError, match=r"2 of 2 images .* state no spacing as angle, first .*; pack files"):
        check_views(CONFIG.model_copy(update={"unit": "arcsec", "unscaled": "area"}), [known])
    with pytest.raises(UserError, match=r"2 of 2 images .* are smaller than 100 mm.*smaller views.physical"):
        check_views(CONFIG.model_copy(update={"physical_size": (100, 200)}), [known])
    write_ome(tmp_path / "in/known.ome.tif", 0.5, 0.5)
    np.save(tmp_path / "in/unknown.npy", np.zeros((20, 20), np.uint16))
    assert (
        exit_code(lambda: main(["pack", str(tmp_path / "in"), str(tmp_path / "set"), "--workers", "1"])) == 0
    )
    mixed = Dataset(tmp_path / "set")
    for refused in (
        lambda: check_views(CONFIG, [mixed]),
        lambda: check_square(physical.whole_square(CONFIG), mixed),
    ):
        with pytest.raises(UserError, match=r"1 of 2 images .*, first unknown; .*views.unscaled=area"):
            refused()
    check_views(CONFIG.model_copy(update={"unscaled": "area"}), [mixed])
    assert "1 of 2 images" in caplog.text and "cropped by area" in caplog.text
    assert json.loads((tmp_path / "set/dataset.json").read_text())["generations"][0]["spacing"] == 1
