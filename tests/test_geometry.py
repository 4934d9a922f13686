"""What is cut from a picture: the same box for image, mask and target, on every way to a batch."""

import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Pooling, run, write_shard
from flat import cache_latents, data_module, example_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_verify import forge
from torch.utils.data import DataLoader

from inpaint_data import (
    Autoencoder,
    Filters,
    InpaintDataModule,
    LatentCache,
    MaskMixture,
    PictureSettings,
    SampleError,
    SoftBorder,
    UsageError,
    verify_cache,
)
from inpaint_data.pictures.examples import Example, prepare
from inpaint_data.pictures.geometry import Geometry, plan, plan_around
from inpaint_data.pictures.views import Views, buckets, nearest
from inpaint_data.seeding import generator_for
from inpaint_data.shards.reading import Fault, Sample

# Height -> widths: the table of SDXL's multi-aspect training (appendix I of its report), as far as it is wide.
SDXL = {
    512: (1856, 1920, 1984, 2048),
    576: (1664, 1728, 1792),
    640: (1536, 1600),
    704: (1344, 1408, 1472),
    768: (1280, 1344),
    832: (1152, 1216),
    896: (1088, 1152),
    960: (1024, 1088),
}
CROPS = ("center", "random", "center+flip", "random+flip")
sides = st.integers(24, 120)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def blots(height: int, width: int, seed: int) -> np.ndarray:
    """A mask (height, width) bool with a few rectangles, never empty."""
    rng, mask = np.random.default_rng(seed), np.zeros((height, width), bool)
    for _ in range(3):
        top, left = int(rng.integers(height - 4)), int(rng.integers(width - 4))
        mask[top : top + int(rng.integers(3, 20)), left : left + int(rng.integers(3, 20))] = True
    return mask


def painted(height: int, width: int, seed: int, key: str = "dog") -> Sample:
    """A sample whose picture and target are its own mask."""
    mask = blots(height, width, seed)
    picture = png(np.repeat((mask * 255).astype(np.uint8)[..., None], 3, 2))
    members = {"png": picture, "target.png": picture, "mask.png": png((mask * 255).astype(np.uint8))}
    return Sample("shards/0.tar", key, members)


# Buckets


def test_the_buckets_are_those_of_sdxl() -> None:
    wide = {(height, width) for height, widths in SDXL.items() for width in widths}
    assert set(buckets(1024, 4, 64)) == wide | {(w, h) for h, w in wide} | {(1024, 1024)}
    assert set(buckets(1024, 2, 64)) == {each for each in buckets(1024, 4, 64) if max(each) <= 2 * min(each)}
    assert buckets(512, 1, 64) == ((512, 512),)


@given(st.integers(1, 20), st.sampled_from([1.0, 1.5, 2.0, 4.0]), st.sampled_from([8, 32, 64]))
def test_buckets_have_about_the_resolution_in_area(times: int, aspect: float, step: int) -> None:
    resolution = times * step
    found = buckets(resolution, aspect, step)
    assert (resolution, resolution) in found
    for height, width in found:
        assert height % step == width % step == 0
        assert 0.9 * resolution**2 <= height * width <= resolution**2
        assert max(height, width) / min(height, width) <= aspect


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_the_nearest_aspect_wins_and_a_picture_on_its_side_gets_the_bucket_on_its_side(height: int, width: int) -> None:
    found = buckets(1024, 2, 64)
    chosen = nearest((height, width), found)
    apart = [abs(math.log(h / w) - math.log(height / width)) for h, w in found]
    assert abs(math.log(chosen[0] / chosen[1]) - math.log(height / width)) <= min(apart) + 1e-12
    if height != width:
        assert nearest((width, height), found) == chosen[::-1]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.lists(st.sampled_from([64, 128, 256, 512]), unique=True))
def test_nothing_is_enlarged_unless_asked_and_no_resolution_is_missed(height: int, width: int, some: list[int]) -> None:
    resolutions = tuple(sorted(some)) or (64,)
    views = Views(resolutions, CROPS, False, 2.0, 64)
    fits = []
    for resolution in resolutions:
        bucket = nearest((height, width), buckets(resolution, 2, 64))
        if height >= bucket[0] and width >= bucket[1]:
            fits.append(resolution)
    if resolutions[0] not in fits:
        with pytest.raises(
            SampleError,
            match=r"smaller than its bucket of \d+x\d+; lower the resolution, or set upscale",
        ):
            views.of((height, width))
    else:
        made = views.of((height, width))
        assert [view.number // len(CROPS) for view in made[:: len(CROPS)]] == [resolutions.index(r) for r in fits]
        assert [view.number % len(CROPS) for view in made] == list(range(len(CROPS))) * len(fits)
    all_of_them = Views(resolutions, CROPS, True, 2.0, 64).of((height, width))
    assert [view.number for view in all_of_them] == list(range(len(resolutions) * len(CROPS)))


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([1.0, 1.5, 4.0]), st.sampled_from([8, 64]))
def test_small_images_go_to_a_smaller_bucket_of_their_own_pixels(
    height: int, width: int, max_aspect: float, step: int
) -> None:
    views = Views((512, 1024), ("center",), False, max_aspect, step, "bucket")
    usual = nearest((height, width), buckets(512, max_aspect, step))
    if min(height, width) < step:
        with pytest.raises(SampleError, match=f"smaller than bucket_step {step}; lower it, or set upscale: true"):
            views.of((height, width))
        return
    view = views.of((height, width))[0]
    if height >= usual[0] and width >= usual[1]:
        assert view == Views((512,), ("center",), False, max_aspect, step).of((height, width))[0]
        return
    assert view.unscaled
    fitting = [
        (h, w)
        for h in range(step, height + 1, step)
        for w in range(step, width + 1, step)
        if max(h, w) <= max_aspect * min(h, w) and h * w <= 512 * 512 and (min(h, w) + step > min(height, width))
    ]
    assert view.target == max(fitting, key=lambda size: size[0] * size[1])
    assert view.target in views.sizes()


def test_a_small_image_is_cut_and_not_resized() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8))
    data = io.BytesIO()
    image.save(data, "PNG")
    chosen = example_settings(resolution=512, max_aspect=2.0, small="bucket", masks="boxes")
    (made,) = prepare(Sample("s.tar", "a", {"png": data.getvalue()}), chosen, [0])
    assert isinstance(made, Example)
    assert np.array_equal(made.image, np.asarray(image)[18:82, 11:139])
    assert made.geometry.resized_size == (100, 150)


def test_small_images_are_either_enlarged_or_bucketed() -> None:
    with pytest.raises(UsageError, match="small: bucket is for images that are not enlarged"):
        PictureSettings(upscale=True, small="bucket")


# The box


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 600), st.integers(1, 600), st.integers(0, 99))
def test_the_crop_covers_the_target_with_as_little_resizing_as_there_can_be(
    height: int, width: int, target_height: int, target_width: int, seed: int
) -> None:
    for crop in ("center", "random"):
        target = (target_height, target_width)
        box = plan((height, width), target, crop, False, generator_for(seed, "k", 0, "crop"))
        assert box.target_size == target
        assert any(resized == side for resized, side in zip(box.resized_size, target, strict=True))
        for start, side, whole in zip(box.crop_top_left, target, box.resized_size, strict=True):
            assert 0 <= start <= whole - side
        if crop == "center":
            assert all(
                start == (whole - side) // 2
                for start, side, whole in zip(box.crop_top_left, target, box.resized_size, strict=True)
            )


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.integers(0, 1000), st.sampled_from([0, 4, 40]), st.booleans(), st.booleans())
def test_only_masked_cuts_the_mask_with_its_padding_at_the_aspect_of_the_target(
    height: int, width: int, seed: int, padding: int, flip: bool, upscale: bool
) -> None:
    mask, target = blots(height, width, seed), (16, 24)
    box = plan_around(mask, target, padding, flip, upscale)
    assert box.target_size == target
    (top, left), (resized_height, resized_width) = box.crop_top_left, box.resized_size
    assert 0 <= top <= resized_height - target[0]
    assert 0 <= left <= resized_width - target[1]
    if flip:
        left = resized_width - target[1] - left
    scale = min(height / resized_height, width / resized_width)
    if not upscale:
        assert scale >= min(1, height / target[0], width / target[1]) - 1e-9
    down, right = height / resized_height, width / resized_width
    seen = mask[
        round(top * down) : round((top + target[0]) * down), round(left * right) : round((left + target[1]) * right)
    ]
    assert seen.any(), "some of the mask is always in the view"
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    wanted = [(rows[0] - padding, rows[-1] + 1 + padding), (columns[0] - padding, columns[-1] + 1 + padding)]
    largest = [min(height / 16, width / 24) * side for side in target]
    for (first, last), start, side, whole, resized, most in zip(
        wanted, (top, left), target, (height, width), (resized_height, resized_width), largest, strict=True
    ):
        one = whole / resized  # pixels of the original in one of the view, of which rounding may cost half on each side
        if last - first <= most:
            assert start * one <= max(first, 0) + one
            assert (start + side) * one >= min(last, whole) - one


def test_an_object_is_as_large_in_the_view_as_its_padding_allows() -> None:
    mask = np.zeros((1000, 2000), bool)
    mask[400:500, 600:800] = True
    box = plan_around(
        mask, (512, 512), 28, flip=False, upscale=True
    )  # 256 pixels wide with the padding: twice as large
    assert box == Geometry((1000, 2000), (2000, 4000), (900 - 256, 1400 - 256), (512, 512))
    kept = plan_around(mask, (512, 512), 28, flip=False, upscale=False)
    assert kept == Geometry((1000, 2000), (1000, 2000), (450 - 256, 700 - 256), (512, 512))
    at_the_border = plan_around(np.roll(mask, -400, 0), (512, 512), 28, flip=False, upscale=False)
    assert at_the_border.crop_top_left == (0, 700 - 256)  # shifted inside
    with pytest.raises(SampleError, match="nothing is masked"):
        plan_around(np.zeros((100, 100), bool), (64, 64), 0, flip=False, upscale=False)


@settings(max_examples=40, deadline=None)
@given(sides, sides, st.integers(0, 1000))
def test_a_mirrored_view_is_the_cut_of_the_mirrored_picture(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    for crop in ("center", "random"):
        plain = plan((height, width), (16, 24), crop, False, generator_for(seed, "k", 0, "crop"))
        mirrored = plan((height, width), (16, 24), crop, True, generator_for(seed, "k", 0, "crop"))
        assert mirrored.crop_top_left == plain.crop_top_left
        whole = np.ascontiguousarray(pixels[:, ::-1])
        apart = mirrored.apply(pixels).astype(int) - plain.apply(whole)
        # Pillow's filter weights are rounded from another side: a level of 255 where something is resized.
        assert np.abs(apart).max() <= (0 if plain.resized_size == plain.original_size else 1)


# Image, mask and target


@settings(max_examples=60, deadline=None)
@given(
    sides,
    sides,
    st.integers(0, 1000),
    st.sampled_from([*CROPS, "mask", "mask+flip"]),
    st.sampled_from([1.0, 2.0]),
    st.booleans(),
)
def test_a_mask_painted_into_picture_and_target_is_found_there_to_the_pixel(
    height: int, width: int, seed: int, crop: str, aspect: float, upscale: bool
) -> None:
    chosen = example_settings(
        resolution=(16, 48),
        crop=crop,
        upscale=upscale,
        seed=seed,
        target=True,
        max_aspect=aspect,
        bucket_step=8,
        mask_padding=3,
    )
    made = prepare(painted(height, width, seed), chosen, [0])
    assert made
    for each in made:
        if isinstance(each, Fault):
            assert ("too small for" if each.on_purpose else "smaller than") in each.reason
            assert not upscale
            continue
        assert each.image.shape[:2] == each.geometry.target_size
        assert each.geometry.target_size in chosen.pictures.views.sizes()
        assert np.array_equal(each.masks[0], each.image[..., 0] > 127)
        assert np.array_equal(each.paired["target"], each.image)
        assert each.geometry.flip is crop.endswith("+flip")


PATHS: dict[str, dict] = {
    "square": {"resolution": 64},
    "buckets": {"resolution": 64, "max_aspect": 2.0, "bucket_step": 8},
    "views": {"resolution": [32, 64], "crop": ["center", "random+flip", "mask"], "max_aspect": 2.0, "bucket_step": 16},
    "enlarged": {"resolution": 256, "upscale": True, "crop": ["mask+flip"]},
}


@pytest.fixture
def painted_shards(tmp_path: Path) -> str:
    """Two shards of pictures of many sizes, each its own mask and target."""
    for number in range(2):
        shapes = [(90, 90), (130, 70), (75, 140), (88, 96), (200, 110), (70, 71), (91, 160)]
        samples = {
            f"s{number}_{i}": painted(height + number, width, 10 * number + i).members
            for i, (height, width) in enumerate(shapes)
        }
        write_shard(tmp_path / "painted" / f"{number}.tar", samples)
    return str(tmp_path / "painted")


def epochs(module: InpaintDataModule, epoch: int = 0) -> list[dict]:
    """All batches of an epoch, encoded, without a Trainer."""
    module.setup("fit")
    module.epoch = epoch
    return [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]


@pytest.mark.parametrize("path", PATHS)
def test_the_painted_mask_is_found_again_after_every_path(path: str, painted_shards: str, tmp_path: Path) -> None:
    options = PATHS[path] | {"mask_offset": 0, "target": True, "batch_size": 3}
    cache = str(tmp_path / "cache")
    cache_latents(painted_shards, cache, vae=Autoencoder(Pooling()), carry_image="crop", storage="float32", **options)
    assert verify_cache(cache, deep=True, against=painted_shards, vae=Autoencoder(Pooling())).ok
    seen = set()
    for shard in sorted(Path(cache).glob("*.tar")):
        reader = LatentCache(cache)
        for index, (name, key) in enumerate(reader.places()):
            if name != shard.name:
                continue
            entry = reader[index]
            crop = np.asarray(Image.open(io.BytesIO(entry["carried"][0]["crop.png"])))
            assert np.array_equal(crop[..., 0] > 127, entry["mask"][0, 0].numpy())
            assert torch.equal(entry["target_latents"], entry["latents"])
            pixels = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            assert torch.equal(entry["latents"], Pooling().encode(pixels))
            seen.add(key)
    live = data_module(painted_shards, vae=Autoencoder(Pooling()), **options)
    by_key = {}
    for batch in epochs(live):
        assert len({tuple(size) for size in batch["target_size"].tolist()}) == 1
        for row, key in enumerate(batch["__key__"]):
            by_key[key] = {name: value[row] for name, value in batch.items() if isinstance(value, torch.Tensor)}
    assert by_key.keys() == seen
    count = len(PATHS[path].get("crop", [0])) * (len(PATHS[path]["resolution"]) if path == "views" else 1)
    assert len(seen) == 14 * count
    reader = LatentCache(cache)
    for index, (_, key) in enumerate(reader.places()):
        entry = reader[index]
        for name, value in by_key[key].items():
            assert torch.equal(entry[name][0], value), (key, name)


# Batches of one bucket


def test_batches_hold_one_bucket_and_an_epoch_has_every_view_once(painted_shards: str, tmp_path: Path) -> None:
    cache, options = str(tmp_path / "cache"), PATHS["views"] | {"mask_offset": 0}
    cache_latents(painted_shards, cache, vae=Autoencoder(Pooling()), batch_size=3, **options)
    orders = []
    for epoch in (0, 0, 1):
        batches = epochs(data_module(cache, batch_size=4), epoch)
        for batch in batches:
            assert len({tuple(size) for size in batch["target_size"].tolist()}) == 1
            assert batch["latents"].shape[-2:] == tuple(side // 8 for side in batch["target_size"][0].tolist())
        orders.append([batch["__key__"] for batch in batches])
        assert sorted(key for batch in orders[-1] for key in batch) == sorted(
            key for _, key in LatentCache(cache).places()
        )
    assert orders[0] == orders[1] != orders[2]
    full = [len(batch) == 4 for batch in orders[0]]
    assert full == sorted(full, reverse=True), "what does not fill a batch of its bucket comes at the end"
    with pytest.raises(UsageError, match="several sizes; take batches from `batches`"):
        LatentCache(cache).batch(range(14))


def test_a_cache_of_several_buckets_is_the_same_bytes_every_time(painted_shards: str, tmp_path: Path) -> None:
    made = []
    for threads in (1, 3):
        cache = tmp_path / f"cache{threads}"
        cache_latents(painted_shards, str(cache), vae=Autoencoder(Pooling()), num_workers=threads, **PATHS["views"])
        made.append({path.name: path.read_bytes() for path in cache.iterdir() if not path.name.startswith(".")})
    assert made[0] == made[1]


def test_views_have_keys_without_dots_and_say_how_they_were_cut(painted_shards: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache_latents(painted_shards, str(cache), vae=Autoencoder(Pooling()), **PATHS["views"])
    reader = LatentCache(cache)
    keys = [key for _, key in reader.places()]
    assert set(keys) == {f"s{n}_{i}_view{v}" for n, i, v in itertools.product(range(2), range(7), range(6))}
    cuts = {
        key: (entry["target_size"].tolist(), entry["crop_top_left"].tolist(), bool(entry["flip"]))
        for key, entry in ((key, reader[index]) for index, key in enumerate(keys))
    }
    assert [cuts[f"s0_0_view{v}"][2] for v in range(6)] == [False, True, False] * 2
    assert [cuts[f"s0_0_view{v}"][0] for v in range(6)] == [[[32, 32]]] * 3 + [[[64, 64]]] * 3
    assert reader[0]["original_size"].shape == (1, 2)


def test_a_picture_too_small_for_one_resolution_is_taken_at_the_others(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {key: painted(side, side, 1).members for key, side in (("big", 80), ("small", 40))})
    cache = tmp_path / "cache"
    options = {"resolution": [32, 64], "max_bad_fraction": 0}
    summary = cache_latents(str(tmp_path / "a.tar"), str(cache), vae=Autoencoder(Pooling()), **options)
    assert "filtered     1: 1 by resolution" in summary.table()
    reason = "resolution: image is 40 high and 40 wide, too small for 64"
    assert [(entry.key, entry.reason) for _, entry in summary.filtered] == [("small_view1", reason)]
    assert {key for _, key in LatentCache(cache).places()} == {"big_view0", "big_view1", "small_view0"}
    assert verify_cache(cache, against=str(tmp_path / "a.tar")).ok
    live = epochs(data_module(str(tmp_path / "a.tar"), vae=Autoencoder(Pooling()), resolution=[32, 64], batch_size=1))
    assert {key for batch in live for key in batch["__key__"]} == {"big_view0", "big_view1", "small_view0"}


def test_a_key_that_looks_like_a_view_is_quarantined(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {key: painted(40, 40, 1).members for key in ("cat", "cat_view1")})
    options = {"resolution": 32, "crop": ["center", "center+flip"], "max_bad_fraction": 1}
    summary = cache_latents(str(tmp_path / "a.tar"), str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **options)
    assert summary.cached == 2
    assert [(entry.key, entry.reason) for _, entry in summary.quarantined] == [
        ("cat_view1", "its key ends in _view1, as those of views do; rename it")
    ]
    assert verify_cache(tmp_path / "cache", against=str(tmp_path / "a.tar")).ok


def test_a_view_that_is_missing_is_found_by_verify(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {key: painted(40, 40, 1).members for key in ("cat", "dog")})
    options = {"resolution": 32, "crop": ["center", "center+flip"]}
    cache_latents(str(tmp_path / "a.tar"), str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **options)
    forge(tmp_path / "cache", "a", lambda samples: samples.pop("dog_view1") and None)
    (problem,) = verify_cache(tmp_path / "cache", against=str(tmp_path / "a.tar")).problems
    assert (problem.key, problem.problem) == ("dog", "not all of its views are cached or quarantined in a.json")


@pytest.mark.parametrize("carry", ["original", "crop"])
def test_fresh_masks_of_views_are_those_of_live_training(carry: str, painted_shards: str, tmp_path: Path) -> None:
    vae, cache = Autoencoder(Pooling()), str(tmp_path / "cache")
    masks = {"masks": "lama-thick"} if carry == "crop" else {"masks": "object", "mixture": MaskMixture(invert=0.5)}
    crop = {"crop": ["center", "random+flip"] if carry == "crop" else ["mask+flip", "mask"]}
    options = PATHS["views"] | masks | crop | {"mask_offset": (-2, 3)}
    cache_latents(painted_shards, cache, vae=vae, carry_image=carry, storage="float32", **options)
    fresh = data_module(cache, fresh_masks=True, vae=vae, batch_size=2, seed=3, **masks)
    live = data_module(painted_shards, vae=vae, batch_size=2, seed=3, **options)
    rows = []
    for module in (fresh, live):
        rows.append(
            {
                key: {name: value[row] for name, value in batch.items() if isinstance(value, torch.Tensor)}
                for batch in epochs(module, 2)
                for row, key in enumerate(batch["__key__"])
            }
        )
    assert rows[0].keys() == rows[1].keys()
    same = ("mask", "offset") if carry == "original" else ("mask", "offset", "masked_latents")
    if "random+flip" in crop["crop"]:  # the place of a random crop is the seed's, and the cache's seed is another
        rows = [{key: value for key, value in each.items() if key[-1] in "024"} for each in rows]
    for key, values in rows[0].items():
        for name in same:
            assert torch.equal(values[name], rows[1][key][name]), (key, name)


def test_only_masked_cuts_around_an_object_that_there_is(tmp_path: Path) -> None:
    empty, mask = np.zeros((60, 90), np.uint8), blots(60, 90, 3).astype(np.uint8) * 255
    picture = png(np.full((60, 90, 3), 90, np.uint8))
    objects = {f"mask.{number}.png": png(mask if number == 2 else empty) for number in range(4)}
    samples = {f"s{i}": {"png": picture, **objects} for i in range(8)} | {
        "none": {"png": picture, "mask.png": png(empty)}
    }
    write_shard(tmp_path / "a.tar", samples)
    options = {"resolution": 32, "crop": "mask", "masks": "object", "max_bad_fraction": 1, "mask_offset": 0}
    summary = cache_latents(
        str(tmp_path / "a.tar"), str(tmp_path / "c"), vae=Autoencoder(Pooling()), variants=2, **options
    )
    assert summary.cached == 8
    assert [entry.key for _, entry in summary.quarantined] == ["none"]
    assert all(LatentCache(tmp_path / "c")[row]["mask"].any() for row in range(8))


def test_empty_masks_are_counted(tmp_path: Path) -> None:
    picture = png(np.full((32, 32, 3), 90, np.uint8))
    masks = {"full": np.full((32, 32), 255, np.uint8), "empty": np.zeros((32, 32), np.uint8)}
    write_shard(tmp_path / "a.tar", {key: {"png": picture, "mask.png": png(mask)} for key, mask in masks.items()})
    options = {"resolution": 32, "mask_offset": 0, "variants": 2}
    summary = cache_latents(str(tmp_path / "a.tar"), str(tmp_path / "c"), vae=Autoencoder(Pooling()), **options)
    assert "empty masks  2 of 4, where nothing is to be repainted" in summary.table()
    kept = cache_latents(
        str(tmp_path / "a.tar"), str(tmp_path / "d"), vae=Autoencoder(Pooling()),
        filters=Filters(min_hole=0.001), crop=["center", "mask"], **options,
    )  # fmt: skip
    assert "empty masks" not in kept.table()
    assert "filtered     2: 2 by min_hole" in kept.table()


def test_a_soft_mask_of_which_a_model_sees_nothing_counts_as_empty(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[30:33, 30:33] = 255
    picture = png(np.full((64, 64, 3), 90, np.uint8))
    write_shard(tmp_path / "a.tar", {"dot": {"png": picture, "mask.png": png(mask)}})
    options = {"resolution": 64, "mask_offset": 0, "soft": SoftBorder("gaussian", 6)}
    summary = cache_latents(str(tmp_path / "a.tar"), str(tmp_path / "c"), vae=Autoencoder(Pooling()), **options)
    assert "empty masks  1 of 1" in summary.table()


def test_a_plain_dataloader_takes_batches_of_one_bucket(painted_shards: str, tmp_path: Path) -> None:
    cache_latents(painted_shards, str(tmp_path / "c"), vae=Autoencoder(Pooling()), **PATHS["views"])
    cache, seen = LatentCache(tmp_path / "c"), []
    for epoch in (0, 1):
        cache.epoch = epoch
        loader = DataLoader(cache, batch_sampler=cache.batches(5))
        batches = list(loader)
        assert all(len({tuple(size) for size in batch["target_size"].tolist()}) == 1 for batch in batches)
        seen.append([key for batch in batches for key in batch["__key__"]])
        assert sorted(seen[-1]) == sorted(key for _, key in cache.places())
        trained = [batch["__key__"] for batch in epochs(data_module(str(tmp_path / "c"), batch_size=5), epoch)]
        assert [batch["__key__"] for batch in batches] == trained
    assert seen[0] != seen[1]
    assert sorted(row for batch in cache.batches(4, shuffle=False) for row in batch) == list(range(len(cache)))
    with pytest.raises(UsageError, match="batch_size: 0"):
        cache.batches(0)


# Filters


def test_filters_count_and_list_what_they_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def members(height: int, width: int, share: float, caption: str) -> dict[str, bytes]:
        mask = np.zeros((height, width), np.uint8)
        mask[: round(height * share)] = 255
        return {"png": png(np.full((height, width, 3), 90, np.uint8)), "mask.png": png(mask), "txt": caption.encode()}

    samples = {
        "good": members(64, 80, 0.5, "words"),
        "small": members(40, 80, 0.5, "words"),
        "long": members(64, 200, 0.5, "words"),
        "silent": members(64, 64, 0.5, " "),
        "bare": members(64, 64, 0.0, "words"),
        "full": members(64, 64, 1.0, "words"),
        "broken": {"png": b"nonsense"},
    }
    write_shard(tmp_path / "in" / "a.tar", samples)
    config = tmp_path / "cache.yaml"
    config.write_text(
        "pictures:\n  resolution: 64\n"
        "  filters: {min_side: 48, max_aspect: 3, min_hole: 0.01, max_hole: 0.9, caption: true}\n"
        "masks: {offset: 0}\nencode: {vae: demo}\njob: {max_bad_fraction: 0.5}\n"
    )
    where = ["--shards", str(tmp_path / "in"), "--out", str(tmp_path / "cache")]
    code, out, _ = run(capsys, "cache", "--config", str(config), *where)
    assert code == 0
    counted = "filtered     5: 1 by caption, 1 by max_aspect, 1 by max_hole, 1 by min_hole, 1 by min_side"
    assert counted in out
    assert "1 samples, 1 quarantined, 5 filtered" in out
    sidecar = json.loads((tmp_path / "cache" / "a.json").read_text())
    assert {entry["key"]: entry["reason"].partition(":")[0] for entry in sidecar["filtered"]} == {
        "small": "min_side",
        "long": "max_aspect",
        "silent": "caption",
        "bare": "min_hole",
        "full": "max_hole",
    }
    assert [entry["key"] for entry in sidecar["quarantined"]] == ["broken"]
    assert verify_cache(tmp_path / "cache", against=str(tmp_path / "in")).ok
    # What a filter leaves out is no failure.
    chosen = Filters(min_side=48)
    write_shard(tmp_path / "b.tar", {key: samples[key] for key in ("good", "small")})
    options = {"resolution": 64, "filters": chosen, "on_bad": "raise", "max_bad_fraction": 0.0}
    summary = cache_latents(str(tmp_path / "b.tar"), str(tmp_path / "b"), vae=Autoencoder(Pooling()), **options)
    assert (summary.cached, len(summary.filtered), len(summary.quarantined)) == (1, 1, 0)


def test_live_training_leaves_the_same_samples_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shard(tmp_path / "a.tar", {key: painted(side, side, 1).members for key, side in (("big", 80), ("small", 70))})
    module = data_module(
        str(tmp_path / "a.tar"), vae=Autoencoder(Pooling()), resolution=64, filters=Filters(min_side=75), batch_size=2
    )
    assert [batch["__key__"] for batch in epochs(module)] == [["big"]]
    assert "sample 'small' is left out: min_side: the image's short side has 70 pixels, fewer than 75" in caplog.text


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolution": (64, 32)}, r"resolution: give \[64, 32\] in ascending order"),
        ({"resolution": ()}, "resolution: none is given"),
        ({"resolution": (64, 64)}, "each once"),
        ({"resolution": 100, "max_aspect": 2}, "bucket_step: 64 does not divide resolution 100"),
        ({"crop": "center+mirror"}, r"crop: 'center\+mirror' is unknown; choose from center, random, mask"),
        ({"crop": ("center", "center")}, "the same view twice"),
        ({"crop": ()}, "crop: '' is unknown"),
        (
            {"crop": "mask", "masks": "lama-thin"},
            "cuts around a mask that comes with the sample, but masks is lama-thin",
        ),
        ({"max_aspect": 0.5}, "max_aspect: 0.5 is not an aspect of 1 to 16; give 1 for squares"),
        ({"max_aspect": 1e9}, "not an aspect of 1 to 16"),
        ({"resolution": 10**6}, "resolution: 1000000 is not a number of pixels from 1 to 16384"),
        ({"bucket_step": 0}, "bucket_step: 0 is not a positive number"),
        ({"mask_padding": -1}, "mask_padding: -1 is too small; give 0 or more"),
    ],
)
def test_settings_that_cannot_work_are_named(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        example_settings(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_side": -1}, "min_side: -1"),
        ({"min_side": 1.5}, "min_side: 1.5"),
        ({"max_aspect": 0.5}, "lets nothing through"),
        ({"min_hole": 0.6, "max_hole": 0.5}, "let nothing through"),
        ({"max_hole": math.nan}, "max_hole: nan"),
        ({"max_hole": 2}, "let nothing through"),
        ({"caption": 3}, "caption: 3 is neither true nor false"),
    ],
)
def test_filters_that_cannot_work_are_named(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Filters(**change)


def test_a_step_that_the_autoencoder_cannot_divide_is_named_before_any_work(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"a": painted(80, 80, 1).members})
    with pytest.raises(
        UsageError, match="bucket_step: 12 is not a multiple of the VAE's downscale factor 8; use 8 or 16"
    ):
        cache_latents(
            str(tmp_path / "a.tar"),
            str(tmp_path / "c"),
            vae=Autoencoder(Pooling()),
            resolution=48,
            max_aspect=2,
            bucket_step=12,
        )


def test_one_view_is_what_it_was_before_there_were_several() -> None:
    made = prepare(painted(80, 120, 1), example_settings(resolution=64, crop="random"), [0])
    assert isinstance(made[0], Example)
    assert (made[0].key, made[0].geometry.flip) == ("dog", False)


def a1111s_region(mask: Any, padding: int, target: tuple[int, int]) -> tuple[tuple[int, ...], bool]:
    """The box (left, top, right, bottom) of A1111's "only masked", and whether it kept padding and aspect.

    As get_crop_region and expand_crop_region of its modules/masking.py (0cb7262) find it: padding is cut at the border
    of the image, the smaller side is stretched to the aspect of `target` in whole pixels, and cut where no room is.
    """
    sides = []
    for axis, size in ((0, mask.shape[1]), (1, mask.shape[0])):
        places = np.nonzero(mask.any(axis))[0]
        sides.append((int(places[0]) - padding, int(places[-1]) + 1 + padding, size))
    fits = all(low >= 0 and high <= size for low, high, size in sides)
    box = [[max(low, 0), min(high, size), size] for low, high, size in sides]
    (width, height), ratio = [high - low for low, high, _ in box], target[1] / target[0]
    axis = 1 if width / height > ratio else 0
    more = int(width / ratio - height) if axis else int(height * ratio - width)
    low, high, size = box[axis]
    low, high = low - more // 2, high + more - more // 2
    low, high = (low - (high - size), size) if high >= size else (low, high)
    low, high = (0, min(high - low, size)) if low < 0 else (low, high)
    box[axis] = [low, high, size]
    region = (box[0][0], box[1][0], box[0][1], box[1][1])
    kept = abs((region[2] - region[0]) / (region[3] - region[1]) / ratio - 1) <= 0.02
    return region, fits and kept


def test_a_cut_around_the_mask_is_a1111s_where_that_keeps_padding_and_aspect(
    record_figure: Callable[[str], None],
) -> None:
    rng, distances, others = np.random.default_rng(0), [], 0
    while len(distances) < 400:
        height, width, padding = (int(rng.integers(*span)) for span in ((96, 400), (96, 400), (0, 40)))
        target = [(64, 64), (64, 96), (96, 64)][rng.integers(3)]
        mask = np.zeros((height, width), bool)
        top, left = int(rng.integers(height)), int(rng.integers(width))
        mask[top : top + int(rng.integers(1, height)), left : left + int(rng.integers(1, width))] = True
        theirs, is_kept = a1111s_region(mask, padding, target)
        if not is_kept:
            others += 1
            continue
        ours = plan_around(mask, target, padding, flip=False, upscale=True)
        down, right = height / ours.resized_size[0], width / ours.resized_size[1]
        corner = np.array([ours.crop_top_left[1] * right, ours.crop_top_left[0] * down])
        box = [*corner, *(corner + np.array([target[1] * right, target[0] * down]))]
        distances.append(float(np.abs(np.array(box) - theirs).max()))
    assert max(distances) < 6
    assert np.median(distances) < 1
    record_figure(
        f"crop mask from A1111's region, where that keeps padding and aspect: median {np.median(distances):.2f}, at "
        f"most {max(distances):.1f} px of the original ({len(distances)} boxes; {others} others left out)"
    )
