"""Sets with different channels, which are combined by the names of these channels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from data_pipeline.__main__ import main
from data_pipeline.dataset.channel_names import stated
from data_pipeline.dataset.index import Dataset
from data_pipeline.loader import Batch, Loader
from data_pipeline.sources import DataConfig
from data_pipeline.transforms import augment, augment_torch
from data_pipeline.transforms.config import AugmentConfig, ViewsConfig
from isotorus.errors import UserError

ALL = ["dapi", "er", "gfp", "golgi", "rfp"]
EVERYTHING = AugmentConfig(
    jitter_probability=1.0,
    blur_probability=0.5,
    solarize_probability=0.5,
    solarize_threshold=0.0,
    gamma_probability=0.5,
    noise_probability=1.0,
    shot_noise=0.1,
    channel_drop_probability=0.5,
    quarter_turns=0.5,
    vertical_flip=0.5,
)


def images(channels: int, seed: int, dtype: str = "uint8") -> np.ndarray:
    """Return 12 images (12, 40, 40, channels) whose channels differ in mean and deviation."""
    random, most = np.random.default_rng(seed), np.iinfo(dtype).max
    x = random.normal(np.arange(1, channels + 1) / 8, 0.05 + np.arange(channels) / 40, (12, 40, 40, channels))
    return (x.clip(0, 1) * most).astype(dtype)


def packed(folder: Path, x: np.ndarray, names: str = "") -> str:
    """Pack arrays, with the names of their channels if given, and return the path of the set."""
    (folder / "images").mkdir(parents=True)
    for i, image in enumerate(x):
        np.save(folder / f"images/{i:02d}.npy", image)
    options = ["--channel-names", names] if names else []
    assert main(["pack", f"{folder}/images", f"{folder}/set", "--workers", "1", *options]) == 0
    return f"{folder}/set"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A set of three channels and one of four; they share two."""
    folder = tmp_path_factory.mktemp("sets")
    a, b = packed(folder / "a", images(3, 1), "rfp,dapi,gfp"), images(4, 2)
    return a, packed(folder / "b", b, "er,dapi,golgi,rfp")


def config(*paths: str, channels: str | int | list[str] = "union") -> DataConfig:
    values = {"sources": [{"path": path, "weight": 1 + i} for i, path in enumerate(paths)]}
    return DataConfig.model_validate(values | {"channels": channels, "workers": 0})


def batch(data: DataConfig, how: AugmentConfig = EVERYTHING) -> tuple[Batch, list[torch.Tensor]]:
    """Return the first batch, and its views (v, b, C, S, S) as the encoder receives them."""
    sources = data.open()
    views = ViewsConfig(global_views=2, global_size=24, local_views=1, local_size=16)
    of: dict[str, Any] = {
        "batch_size": 8,
        "views": views,
        "augment": how,
        "channels": data.channel_count,
        "seed": 3,
    }
    first = next(iter(Loader(sources, **of)))
    statistics = sources.statistics(data.channel_count)
    seen = [
        augment.apply(x.flatten(0, 1), p.flatten(0, 1), *statistics, first.present).unflatten(0, x.shape[:2])
        for x, p in zip(first.views, first.parameters, strict=True)
    ]
    return first, seen


def test_channels_are_placed_by_name_and_others_stay_zero_when_augmented(sets: tuple[str, str]) -> None:
    data = config(*sets)
    assert data.channel_names == ALL and data.channel_count == 5
    first, seen = batch(data)
    assert first.present is not None
    of_a = torch.from_numpy(first.indices < 12)
    assert 0 < of_a.sum() < 8
    expected = torch.where(of_a[:, None], torch.tensor([1, 0, 1, 0, 1]), torch.tensor([1, 1, 0, 1, 1]))
    assert torch.equal(first.present, expected.bool())
    for views in seen:
        there = views.any(-1).any(-1)  # (v, b, C)
        assert not (there & ~first.present).any()
        # A channel that augmentation drops becomes absent, and nothing else does.
        dropped = first.present.expand_as(there).sum() - there.sum()
        assert 0 < dropped <= there.shape[0] * 8


def test_pixels_are_those_of_a_set_that_is_read_alone(sets: tuple[str, str]) -> None:
    off = AugmentConfig(**{name: 0.0 for name in AugmentConfig.model_fields if name.endswith("_probability")})
    alone, _ = batch(config(sets[1], channels=4), off)
    first, seen = batch(config(sets[1], channels=ALL), off)
    places = [ALL.index(name) for name in ("er", "dapi", "golgi", "rfp")]
    for x, y, z in zip(first.views, alone.views, seen, strict=True):
        assert torch.equal(x[:, :, places], y)
        mean, std = (torch.tensor(v)[:, None, None] for v in (Dataset(sets[1]).mean, Dataset(sets[1]).std))
        torch.testing.assert_close(z[:, :, places], (y.float() / 255 - mean) / std, atol=1e-5, rtol=1e-4)


def test_the_order_of_a_sets_channels_and_of_the_sets_does_not_matter(
    sets: tuple[str, str], tmp_path: Path
) -> None:
    turned = packed(tmp_path / "a", images(3, 1)[..., [2, 0, 1]], "gfp,rfp,dapi")
    (one, seen), (other, also) = batch(config(*sets)), batch(config(turned, sets[1]))
    assert one.present is not None and other.present is not None
    assert torch.equal(one.present, other.present)
    assert all(torch.equal(x, y) for x, y in zip(seen, also, strict=True))
    assert config(sets[1], sets[0]).channel_names == ALL


def test_statistics_of_a_channel_are_those_of_the_sets_that_have_it(sets: tuple[str, str]) -> None:
    mean, std = config(*sets).open().statistics(5)
    a, b = (images(n, seed) / 255 for n, seed in ((3, 1), (4, 2)))
    alone = {"gfp": a[..., 2], "er": b[..., 0], "golgi": b[..., 2]}
    for name, values in alone.items():
        assert mean[ALL.index(name)] == pytest.approx(values.mean(), abs=1e-6)
        assert std[ALL.index(name)] == pytest.approx(values.std(), rel=1e-5)
    both = np.concatenate([a[..., 0].ravel(), *[b[..., 3].ravel()] * 2])  # rfp; the second set weighs twice
    assert mean[ALL.index("rfp")] == pytest.approx(both.mean(), abs=1e-6)
    assert std[ALL.index("rfp")] == pytest.approx(both.std(), rel=1e-5)


def test_cpu_and_torch_treat_three_named_channels_each_by_itself() -> None:
    x = torch.from_numpy(images(3, 5)).permute(0, 3, 1, 2).contiguous()
    random = np.random.default_rng(0)
    table = torch.from_numpy(np.stack([augment.draw(random, EVERYTHING) for _ in range(12)]))
    present = torch.ones(12, 3, dtype=torch.bool)
    present[::2, 1] = False
    statistics = (0.4, 0.3, 0.2), (0.2, 0.1, 0.3)
    seen = augment.apply(x, table, *statistics, present)
    other = augment_torch.apply(x, table, *statistics, False) * present[:, :, None, None]
    torch.testing.assert_close(seen, other, atol=2e-4, rtol=1e-4)
    # The second channel has no influence on the others; if the channels were colours, it would have.
    x[:, 1] = 0
    again = augment.apply(x, table, *statistics, present)
    assert torch.equal(seen[:, [0, 2]], again[:, [0, 2]])


def test_names_come_from_files_and_can_be_given_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ome").mkdir()
    for i, image in enumerate(images(3, 1)):
        tifffile.imwrite(
            tmp_path / f"ome/{i}.ome.tif",
            image.transpose(2, 0, 1),
            photometric="minisblack",
            metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "Cy5"]}},
        )
    source, dest = f"{tmp_path}/ome", f"{tmp_path}/set"
    main(["pack", source, dest, "--workers", "1", "--val-fraction", "0.4"])
    assert Dataset(f"{dest}/train").channel_names == ["DAPI", "GFP", "Cy5"]
    before = Dataset(f"{dest}/train").fingerprint
    main(["name-channels", dest, "dapi, gfp ,cy5"])
    main(["info", dest])
    assert capsys.readouterr().out.count("3 (colour): dapi, gfp, cy5") == 2
    assert Dataset(f"{dest}/val").channel_names == ["dapi", "gfp", "cy5"]
    assert Dataset(f"{dest}/train").fingerprint == before
    # New files may be added under the same names only.
    for names, said in (("a,b,c", "leave out --channel-names"), ("a,b", "--channel-names names 2")):
        new = tmp_path / f"new{len(names)}"
        new.mkdir()
        np.save(new / "x.npy", images(3, 9)[0])
        with pytest.raises(UserError, match=said):
            main(["pack", str(new), dest, "--append", "--workers", "1", "--channel-names", names])
        main(["pack", str(new), f"{new}/set", "--workers", "1"])
        assert Dataset(f"{new}/set").channel_names is None
    with pytest.raises(UserError, match=r"has 3 channels, and 2 names are given"):
        main(["name-channels", dest, "a,b"])
    with pytest.raises(UserError, match="two channels are called a; name each differently"):
        main(["name-channels", dest, "a,a,b"])


def test_names_count_where_all_files_state_the_same() -> None:
    assert stated([["a", "b"], ["a", "b"]], 2) == ["a", "b"]
    unfit: list[list[list[str]]] = [[], [[]], [["a", "b"], []], [["a", "b"], ["b", "a"]], [["a", "a"]]]
    for lists in [*unfit, [["a", ""]], [["a"]]]:
        assert stated(lists, 2) is None


def test_bands_of_a_geotiff_have_the_names_that_gdal_gave_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{name}</Item>'
        for i, name in enumerate(("B02", "B8A &amp; more"))
    )
    tifffile.imwrite(
        tmp_path / "images/tile.tif",
        images(2, 1)[0],
        photometric="minisblack",
        planarconfig="contig",
        metadata=None,
        extratags=[(42112, "s", 0, f"<GDALMetadata>{items}</GDALMetadata>", True)],
    )
    main(["pack", f"{tmp_path}/images", f"{tmp_path}/set", "--workers", "1"])
    assert Dataset(tmp_path / "set").channel_names == ["B02", "B8A & more"]


def test_sets_whose_channels_cannot_be_joined_are_refused(sets: tuple[str, str], tmp_path: Path) -> None:
    plain = packed(tmp_path / "plain", images(3, 7))
    deep = packed(tmp_path / "deep", images(2, 7, "uint16"), "dapi,cy5")
    upper = packed(tmp_path / "upper", images(2, 8), "DAPI,cy5")
    blank = images(2, 8)
    blank[..., 1] = 9
    constant = packed(tmp_path / "constant", blank, "dapi,cy5")
    for paths, said in (
        ((sets[0], plain), "does not name its 3 channels.*name-channels"),
        ((sets[0], deep), "8 bits a channel and .* has 16.*--intensity"),
        ((sets[0], upper), "differ in upper and lower case alone"),
        ((sets[0], constant), "the channel cy5 of .* has one value in all images"),
        ((sets[0],), "data are one set"),
    ):
        with pytest.raises(UserError, match=said):
            config(*paths).open()
    assert config(sets[0], constant, channels=["dapi", "rfp"]).open().statistics(2)[1][1] > 0
    with pytest.raises(UserError, match=r"of which the encoder has none \(x\)"):
        config(sets[0], channels=["x"]).open()
    with pytest.raises(ValueError, match="two channels are called a"):
        config(sets[0], channels=["a", " a"])
