"""The statistics of masks: every figure against an obvious count, for a cache and for the shards it is made from."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PHOTOS, run, write_shard
from flat import OF_JOBS, cache_latents, grouped
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from inpaint_data import (
    Filters,
    LatentCache,
    MaskMixture,
    MaskStatistics,
    ShardError,
    SoftBorder,
    UsageError,
)
from inpaint_data import mask_statistics as statistics_of_groups
from inpaint_data.commands.bands import ASPECTS, HOLES, OFFSETS, PIECES, RESOLUTIONS
from inpaint_data.masks.edits import Origin

MIXTURE = MaskMixture({"boxes": 1, "strokes": 1, "full": 0.3}, invert=0.3)
JOB = {"masks": "mixture", "mixture": MIXTURE, "mask_offset": (-8, 24), "resolution": 64, "variants": 3, "seed": 5}


def mask_statistics(source: str, **flat: Any) -> MaskStatistics:
    return statistics_of_groups(source, **grouped(OF_JOBS, flat))


def components(mask: np.ndarray) -> int:
    """Regions of eight neighbours, by flooding each."""
    left, count = {tuple(place) for place in np.argwhere(mask)}, 0
    while left:
        count += 1
        border = [left.pop()]
        while border:
            y, x = border.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border += near
    return count


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(*[st.sampled_from([8, 16, 24])] * 2)), st.integers(-128, 128))
def test_every_figure_of_a_mask_is_what_an_obvious_count_gives(array: np.ndarray, offset: int) -> None:
    found = MaskStatistics("", 8)
    origin = Origin("boxes", ("stroke",))
    found.add_mask(torch.from_numpy(array), origin, offset)
    height, width = array.shape
    ratio = array.sum() / array.size
    assert found.ratios[origin] == pytest.approx(ratio)
    assert found.empty == (ratio == 0)
    assert found.offsets == Counter([offset])
    assert found.pieces == Counter([components(array)])
    sides = {"top": array[0], "bottom": array[height - 1], "left": array[:, 0], "right": array[:, width - 1]}
    assert {side for side in sides if found.borders[side]} == {side for side, edge in sides.items() if edge.any()}
    assert found.borders["any"] == any(edge.any() for edge in sides.values())
    corners = [array[y, x] for y in range(0, height, 8) for x in range(0, width, 8)]
    assert found.vanished["nearest"] == (ratio > 0 and not any(corners))
    middles = [array[y + 3 : y + 5, x + 3 : x + 5].mean() for y in range(0, height, 8) for x in range(0, width, 8)]
    assert found.vanished["bilinear-round"] == (ratio > 0 and not any(middle > 0.5 for middle in middles))


@given(st.floats(0, 1))
def test_a_hole_ratio_is_in_the_benchmarks_band(ratio: float) -> None:
    ends = [0, 0.01, *(tenth / 10 for tenth in range(1, 11))]
    expected = next(number for number, end in enumerate(ends) if ratio <= end)
    assert HOLES.of(ratio) == HOLES.names[expected]


@given(st.integers(-128, 128))
def test_an_offset_is_in_the_band_that_is_named_after_it(offset: int) -> None:
    low, _, high = OFFSETS.of(offset).partition("...")
    assert int(low) <= offset <= int(high or low)


@pytest.mark.parametrize("bands", [HOLES, OFFSETS, PIECES, ASPECTS, RESOLUTIONS])
def test_bands_are_in_order_and_each_has_a_name(bands) -> None:  # type: ignore[no-untyped-def]
    assert list(bands.ends) == sorted(set(bands.ends))
    assert len(bands.ends) == len(bands.names) == len(set(bands.names))


def test_a_soft_mask_counts_where_it_is_above_a_half() -> None:
    soft = torch.tensor([[0.5, 0.51], [0.0, 1.0]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    found = MaskStatistics("", 8)
    found.add_mask(soft, Origin("object"), 0)
    assert found.ratios[Origin("object")] == 0.5


def test_generators_are_put_together_and_labels_told_apart() -> None:
    found = MaskStatistics("", 8)
    for origin, masked in ((Origin("boxes"), 8), (Origin("boxes", ("inverted",)), 16), (Origin("full"), 16)):
        mask = torch.zeros(16, 16, dtype=torch.bool)
        mask[:masked] = True
        found.add_mask(mask, origin, 0)
    assert {name: (bands.total(), mean) for name, (bands, mean) in found.by_generator.items()} == {
        "boxes": (2, 0.75),
        "full": (1, 1.0),
    }
    assert list(found.by_label) == ["boxes", "boxes+inverted", "full"]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, photo_bytes: dict[str, bytes]) -> Path:
    """A folder with `shards` of all images and two samples that cannot be used, and their `cache`."""
    root, keys = tmp_path_factory.mktemp("statistics"), list(photo_bytes)
    for number, part in enumerate((keys[:5], keys[5:])):
        bad = {f"bad_{number}": {"jpg": b"no picture"}}
        write_shard(root / "shards" / f"{number:06d}.tar", {key: {"jpg": photo_bytes[key]} for key in part} | bad)
    cache_latents(str(root / "shards"), str(root / "cache"), max_bad_fraction=1, **JOB)  # type: ignore[arg-type]
    return root


def test_a_cache_and_the_shards_it_was_made_from_have_the_same_statistics(cached: Path) -> None:
    of_cache = mask_statistics(str(cached / "cache"))
    of_shards = mask_statistics(str(cached / "shards"), **JOB)
    assert of_cache.masks == of_shards.masks == 12 * 3
    assert of_cache.factor == of_shards.factor == 8
    for name in ("holes", "ratios", "offsets", "borders", "pieces", "vanished", "originals", "targets", "samples"):
        assert getattr(of_cache, name) == getattr(of_shards, name), name


def test_every_variant_of_a_cache_is_counted(cached: Path) -> None:
    found = mask_statistics(str(cached / "cache"))
    offsets: Counter[int] = Counter()
    for variant in range(3):
        cache = LatentCache(cached / "cache", variant=variant)
        offsets.update(int(cache[index]["offset"][0]) for index in range(len(cache)))
    assert found.offsets == offsets


@pytest.mark.parametrize("source", ["cache", "shards"])
def test_samples_that_cannot_be_used_are_named(cached: Path, source: str) -> None:
    found = mask_statistics(str(cached / source), **(JOB if source == "shards" else {}))
    assert [key for _, key, _ in found.bad] == ["bad_0", "bad_1"]
    assert all("jpg" in reason for _, _, reason in found.bad)
    assert found.samples == 12


def test_views_are_counted_each_at_its_size_and_what_filters_leave_out_apart(cached: Path) -> None:
    job = {
        "masks": "boxes",
        "resolution": [64, 128],
        "max_aspect": 2.0,
        "bucket_step": 8,
        "filters": Filters(min_side=448),
    }
    found = mask_statistics(str(cached / "shards"), **job)
    photos = sum(min(Image.open(photo).size) >= 448 for photo in PHOTOS.glob("*.jpg"))
    assert found.samples == found.targets.total() == 2 * photos
    assert len(found.targets) > 2
    assert found.filtered == 12 - photos
    assert len(found.bad) == 2


def test_soft_masks_and_targets_are_counted_like_any(tmp_path: Path, photo_bytes: dict[str, bytes]) -> None:
    pair = {"jpg": photo_bytes["cat"], "target.jpg": photo_bytes["cat"]}
    write_shard(tmp_path / "shards" / "a.tar", {"cat": pair, "dog": pair})
    job = {"masks": "boxes", "resolution": 64, "target": True, "soft": SoftBorder(radius=2)}
    of_shards = mask_statistics(str(tmp_path / "shards"), **job)
    cache_latents(str(tmp_path / "shards"), str(tmp_path / "cache"), **job)  # type: ignore[arg-type]
    of_cache = mask_statistics(str(tmp_path / "cache"))
    assert of_shards.masks == of_cache.masks == 2
    assert of_shards.ratios == of_cache.ratios


def test_fewer_samples_are_spread_over_all(cached: Path) -> None:
    found = mask_statistics(str(cached / "cache"), samples=3)
    assert (found.samples, found.masks) == (3, 9)
    assert found.of == "of 12 in the cache"
    assert mask_statistics(str(cached / "shards"), samples=4, masks="boxes", resolution=64).samples == 4


def test_the_command_prints_a_table_or_json_and_draws_a_picture(
    cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png = tmp_path / "new" / "figures.png"
    code, table, _ = run(capsys, "stats", str(cached / "cache"), "--png", str(png))
    assert code == 0
    for row in ("12 looked at, of 12 in the cache; 3 masks each; 2 bad", "hole ratio", "boxes", "+inverted", "offset",
                "border", "components", "vanishing", "original", "target", "'bad_1'"):  # fmt: skip
        assert row in table
    picture = np.asarray(Image.open(png))
    assert picture.std() > 5
    code, printed, _ = run(capsys, "stats", str(cached / "cache"), "--json")
    found = json.loads(printed)
    assert found["masks"] == sum(found["hole_ratio"]["bands"].values()) == 36
    assert sum(each["masks"] for each in found["hole_ratio"]["by_generator"].values()) == 36
    assert sum(found["offset"]["bands"].values()) == sum(found["components"]["bands"].values()) == 36
    assert [bad["key"] for bad in found["bad"]] == ["bad_0", "bad_1"]


def test_the_job_s_yaml_gives_what_its_flags_give(
    cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(
        "shards: elsewhere\nout: nowhere\nencode: {vae: no/such}\njob: {batch_size: 2, variants: 2}\n"
        "masks: {source: boxes, offset: [-4, 8]}\npictures: {resolution: 64}\n"
    )
    (tmp_path / "mixture.yaml").write_text("weights: {boxes: 1}\n")
    common = ["stats", str(cached / "shards"), "--json"]
    flags = ["--mask_offset", "[-4,8]", "--resolution", "64", "--variants", "2"]
    by_flag = run(capsys, *common, *flags, "--masks", "boxes")
    assert by_flag[0] == 0
    assert run(capsys, *common, "--config", str(tmp_path / "job.yaml")) == by_flag
    assert run(capsys, *common, *flags, "--config", str(tmp_path / "mixture.yaml")) == by_flag


def test_what_no_mask_depends_on_may_be_given_for_a_cache(
    cached: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.yaml").write_text(
        "shards: elsewhere\nout: nowhere\nencode: {vae: no/such}\njob: {batch_size: 2}\n"
        "masks: {fill: black}\npictures: {carry_image: crop}\n"
    )
    common = ["stats", str(cached / "cache"), "--json"]
    plain = run(capsys, *common)
    assert plain[0] == 0
    assert run(capsys, *common, "--config", str(tmp_path / "job.yaml")) == plain


def test_more_than_one_percent_of_vanishing_masks_is_a_warning(
    cached: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["stats", str(cached / "shards"), "--masks", "boxes", "--resolution", "64", "--mask_offset"]
    code, _, err = run(capsys, *arguments, "-4")
    assert code == 0
    assert "WARNING: " in err
    assert "% of the masks that are not empty vanish at latent resolution (nearest, 8x smaller)" in err
    assert "raise min_hole" in err
    assert 'conditioning(..., latent_mask="max")' in err
    assert run(capsys, *arguments, "16")[2] == ""


def test_more_than_one_percent_of_empty_masks_is_a_warning(cached: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["stats", str(cached / "shards"), "--masks", "boxes", "--resolution", "64", "--mask_offset", "-128"]
    code, out, err = run(capsys, *arguments)
    assert code == 0
    assert "12, 12 of them empty" in out
    assert err.count("\n") == 1
    assert "WARNING: 100.0% of the masks are empty (boxes: 12 of 12)" in err
    assert "let mask_offset shrink less" in err


@pytest.mark.parametrize(
    ("origin", "label", "warned"),
    [
        (Origin("boxes"), "boxes", True),
        (Origin("object", ("precision4", "inverted")), "object+precision4+inverted", True),
        (Origin("none"), "none", False),
    ],
)
def test_empty_masks_are_a_warning_unless_none_draws_them(origin: Origin, label: str, warned: bool) -> None:
    found = MaskStatistics("", 8)
    for number in range(100):
        found.add_mask(torch.full((16, 16), number > 1), origin if number < 2 else Origin("full"), 0)
    assert found.empty == 2
    assert [f"2.0% of the masks are empty ({label}: 2 of 2)" in line for line in found.warnings()] == [True] * warned


def test_the_share_that_vanishes_is_of_the_masks_that_are_not_empty() -> None:
    found, dot = MaskStatistics("", 8), torch.zeros(16, 16, dtype=torch.bool)
    for _ in range(98):
        found.add_mask(dot, Origin("boxes"), 0)
    found.add_mask(torch.ones_like(dot), Origin("boxes"), 0)
    dot[3, 3] = True
    found.add_mask(dot, Origin("boxes"), 0)
    assert found.share_that_vanishes("nearest") == 0.5


def test_resolutions_are_counted_by_the_short_side(cached: Path) -> None:
    found = json.loads(mask_statistics(str(cached / "cache")).to_json())
    sides = [min(Image.open(photo).size) for photo in PHOTOS.glob("*.jpg")]
    bands = found["original"]["short_side"]["bands"]
    assert bands["to 512"] == sum(384 < side <= 512 for side in sides)
    assert sum(bands.values()) == len(sides)
    assert found["target"]["short_side"]["bands"]["to 128"] == 12
    assert found["target"]["aspect"]["within 5:4"] == 12


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["nothing"], 2, "nothing: is not a cache, and cannot be read as shards: no such file"),
        (["empty"], 2, "empty"),
        (["cache", "--samples", "0"], 2, "samples: 0"),
        (["cache", "--seed", "3"], 2, "seed: cache is a cache, whose masks are made already"),
        (["cache", "--factor", "16"], 2, "factor: cache is a cache"),
        (["cache", "--png", "a.jpg"], 2, "png: a.jpg does not end in .png"),
        (["cache", "--config", "typo.yaml"], 2, "typo.yaml: pictures: there is no setting 'resolutoin'"),
        (["cache", "--config", "seed.yaml"], 2, "seed.yaml: seed: cache is a cache, whose masks are made already"),
        (["cache", "--config", "boxes.yaml"], 2, "boxes.yaml: masks: cache is a cache, whose masks are made already"),
        (["cache", "--mask_offset", "3"], 2, "mask_offset: cache is a cache, whose masks are made already"),
        (["shards", "--masks", "lama"], 2, "masks: 'lama' is unknown"),
        (["shards", "--masks", "boxes", "--resolution", "100"], 2, "a 100 x 100 mask cannot be divided by 8"),
        (["shards", "--masks", "boxes", "--resolution", "64", "--factor", "0"], 2, "factor: 0"),
        (["shards", "--resolution", "64"], 1, "no sample gives a mask"),
        (
            ["shards", "--masks", "boxes", "--resolution", "64", "--filters", "{min_side: 9999}"],
            1,
            "no sample gives a mask: 12 filtered, 2 bad; the first, ",
        ),
        (
            ["good.tar", "--masks", "boxes", "--resolution", "64", "--filters", "{min_hole: 0.99}"],
            1,
            "less than 0.99; loosen that filter",
        ),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str],
    code: int,
    named: str,
    cached: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    photo_bytes: dict[str, bytes],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cache", "shards"):
        (tmp_path / name).symlink_to(cached / name)
    write_shard(tmp_path / "good.tar", {"cat": {"jpg": photo_bytes["cat"]}})
    (tmp_path / "empty").mkdir()
    (tmp_path / "typo.yaml").write_text("pictures: {resolutoin: 64}\n")
    (tmp_path / "seed.yaml").write_text("job: {seed: 3}\n")
    (tmp_path / "boxes.yaml").write_text("masks: {source: boxes}\n")
    got, _, err = run(capsys, "stats", *arguments)
    assert (got, len(err.splitlines())) == (code, 1), err
    assert named in err


def test_a_cache_of_which_filters_left_nothing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], photo_bytes: dict[str, bytes]
) -> None:
    write_shard(tmp_path / "a.tar", {"cat": {"jpg": photo_bytes["cat"]}})
    job = {"masks": "boxes", "resolution": 64, "filters": Filters(min_hole=0.99)}
    cache_latents(str(tmp_path / "a.tar"), str(tmp_path / "cache"), **job)  # type: ignore[arg-type]
    capsys.readouterr()
    code, out, err = run(capsys, "stats", str(tmp_path / "cache"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert str(tmp_path / "cache") in err


def test_shards_without_any_mask_say_why(cached: Path) -> None:
    with pytest.raises(ShardError, match="no mask: the sample has jpg"):
        mask_statistics(str(cached / "shards"), resolution=64)
    with pytest.raises(UsageError, match="samples: -1"):
        mask_statistics(str(cached / "shards"), samples=-1)
