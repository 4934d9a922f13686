"""JPEGs decoded smaller than they are, and resized by torch: only pixels differ, and by little."""

import io
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents, data_module
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint_data import Autoencoder, PictureSettings, SampleError, UsageError
from inpaint_data.masks.settings import MaskSettings
from inpaint_data.pictures import torch_resize
from inpaint_data.pictures.examples import Example, prepare
from inpaint_data.pictures.geometry import plan, reduction
from inpaint_data.pictures.images import decode_image, image_size
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.seeding import generator_for
from inpaint_data.shards.reading import Fault, Sample

sides = st.integers(64, 200)


def torch_has_lanczos() -> bool:
    """2.13 has, and the lowest version that is allowed has not."""
    with suppress(UsageError):
        torch_resize.check_torch_resizes()
        return True
    return False


RESIZES = ["pillow", "torch"] if torch_has_lanczos() else ["pillow"]
BY_TORCH = {"resize": "torch"} if torch_has_lanczos() else {}
needs_lanczos = pytest.mark.skipif(not BY_TORCH, reason="this torch has no Lanczos")


def smooth(height: int, width: int) -> np.ndarray:
    """Red grows to the right and green downwards, so that a shift by a part of a pixel shows."""
    red, green = np.linspace(0, 255, width)[None], np.linspace(0, 255, height)[:, None]
    both = np.broadcast_arrays(red, green, np.full((1, 1), 90.0))
    return np.stack(both, axis=-1).round().astype(np.uint8)


def jpeg(pixels: np.ndarray, orientation: int = 1, mode: str = "RGB", **options: Any) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} | options
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


def example(data: bytes, members: dict[str, bytes] | None = None, **pictures: Any) -> Example:
    made = ExampleSettings(PictureSettings(**pictures), MaskSettings(source="lama-thick"))
    (result,) = prepare(Sample("a.tar", "x", {"jpg": data} | (members or {})), made, [0])
    if isinstance(result, Fault):
        raise SampleError(result.reason)
    return result


@settings(deadline=None, max_examples=40)
@given(sides, sides, st.integers(1, 8), st.sampled_from([2, 4, 8]), st.sampled_from(RESIZES))
def test_a_reduced_image_is_cut_at_the_same_place_whatever_its_sides_and_orientation(
    height: int, width: int, orientation: int, by: int, resize: Any
) -> None:
    data = jpeg(smooth(height, width), orientation)
    whole, settings = decode_image(data), PictureSettings().decoding
    reduced = decode_image(data, replace(settings, reduced=by))
    divides = orientation == 1 or not (height % by or width % by)
    assert max(reduced.shape) == (-(-max(whole.shape) // by) if divides else max(whole.shape))
    geometry = plan(image_size(data), (8, 8), "random", flip=True, rng=generator_for(0, b"x", 0, "crop"))
    there, here = geometry.apply(whole).astype(int), geometry.apply(reduced, resize).astype(int)
    assert abs(there - here).max() <= 0.15 * 255 / 8  # a seventh of a pixel of the cut


@settings(deadline=None)
@given(sides, sides, st.integers(1, 64), st.floats(1, 4))
def test_at_least_the_gap_is_left_and_twice_the_gap_never(height: int, width: int, side: int, gap: float) -> None:
    by = reduction((height, width), [(side, side), (1, 1)], gap)
    scale = min(height, width) / side
    assert by == 1 or scale / by >= gap
    assert by == 8 or scale / (2 * by) < gap


def test_images_are_decoded_whole_and_resized_by_pillow_unless_asked() -> None:
    data = jpeg(smooth(128, 192))
    pixels = np.asarray(Image.open(io.BytesIO(data)).resize((48, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(example(data, resolution=32).image, pixels[:, 8:40])


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_what_is_decoded_smaller_is_what_pillows_draft_gives(mode: str) -> None:
    data = jpeg(smooth(128, 128), mode=mode, progressive=True)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(mode, (32, 32))
        assert image.size == (32, 32)
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(example(data, resolution=32, reducing_gap=1).image, expected)


@pytest.mark.parametrize(
    "change",
    [{"reducing_gap": 1}, pytest.param({"resize": "torch"}, marks=needs_lanczos), {"reducing_gap": 2.0} | BY_TORCH],
)
def test_masks_and_sizes_are_those_of_whole_decoding(change: dict[str, Any]) -> None:
    data = jpeg(smooth(203, 301))
    asked = {"resolution": 48, "crop": "random", "carry_image": "crop"}
    whole, other = example(data, **asked), example(data, **asked, **change)
    assert not np.array_equal(whole.image, other.image)
    assert abs(whole.image.astype(int) - other.image).max() <= 8
    assert np.array_equal(whole.masks, other.masks)
    assert other.geometry == whole.geometry
    assert other.geometry.original_size == (203, 301)


@pytest.mark.parametrize("change", [{"reducing_gap": 2.0}, pytest.param({"resize": "torch"}, marks=needs_lanczos)])
def test_a_cache_of_whole_images_does_not_go_on_with_others(
    change: dict[str, Any], shards: str, tmp_path: Path
) -> None:
    made = {"vae": Autoencoder(Pooling()), "resolution": 32, "masks": "center"}
    cache_latents(shards, str(tmp_path / "cache"), **made)
    recorded = json.loads((tmp_path / "cache" / "cache.json").read_text())["settings"]["pictures"]
    assert not {"reducing_gap", "decoder", "resize"} & recorded.keys()  # as in caches of before there were any
    with pytest.raises(UsageError, match=next(iter(change))):
        cache_latents(shards, str(tmp_path / "cache"), **made, **change)


def test_a_view_has_the_same_pixels_alone_and_beside_others() -> None:
    data = jpeg(smooth(300, 400))
    made = ExampleSettings(PictureSettings(resolution=(32, 100), reducing_gap=1), MaskSettings(source="lama-thick"))
    sample = Sample("a.tar", "x", {"jpg": data})
    both, alone = prepare(sample, made, [0]), prepare(sample, made, [0], {0: (32, 32)})
    assert np.array_equal(both[0].image, alone[0].image)
    assert both[1].geometry.original_size == (300, 400)


def test_what_is_cut_around_a_mask_is_decoded_whole_and_resized_by_pillow() -> None:
    data, mask = jpeg(smooth(200, 200)), np.zeros((200, 200), np.uint8)
    mask[90:100, 20:33] = 255
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    members = {"jpg": data, "mask.png": file.getvalue()}
    cuts = []
    for change in ({}, {"reducing_gap": 1} | BY_TORCH):
        pictures = PictureSettings(resolution=32, crop="mask", upscale=True, mask_padding=1, **change)
        (cut,) = prepare(Sample("a.tar", "x", members), ExampleSettings(pictures), [0])
        cuts.append(cut)
    assert np.array_equal(cuts[0].image, cuts[1].image)
    assert np.array_equal(cuts[0].masks, cuts[1].masks)


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_is_found_in_what_is_decoded_smaller(progressive: bool) -> None:
    data = jpeg(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), quality=60, progressive=progressive)
    assert example(data, resolution=16, reducing_gap=1).image.shape == (16, 16, 3)
    for end in range(len(data) // 2, len(data) - 2, 97):
        with pytest.raises(SampleError, match="damaged"):
            example(data[:end] + data[-2:], resolution=16, reducing_gap=1)


def test_a_target_is_reduced_like_its_image_and_may_not_differ_by_a_row() -> None:
    data = jpeg(smooth(128, 128))
    paired = example(data, {"target.jpg": data}, resolution=32, reducing_gap=1, target=True, **BY_TORCH)
    assert np.array_equal(paired.paired["target"], paired.image)
    with pytest.raises(SampleError, match="127"):  # though at a quarter both have 32 rows
        example(data, {"target.jpg": jpeg(smooth(127, 128))}, resolution=32, reducing_gap=1, target=True)


def test_fresh_masks_lie_on_the_pixels_that_were_cached(tmp_path: Path) -> None:
    vae, cache = Autoencoder(Pooling()), str(tmp_path / "cache")
    samples = {key: {"jpg": jpeg(smooth(130, 190)), "txt": b"a"} for key in small_samples(3)}
    options = {"resolution": 32, "reducing_gap": 1.0, "masks": "lama-thick"} | BY_TORCH
    shards = str(write_shard(tmp_path / "a.tar", samples))
    cache_latents(shards, cache, vae=vae, carry_image="original", storage="float32", **options)
    fresh = data_module(cache, fresh_masks=True, vae=vae, batch_size=3, seed=3, masks="lama-thick")
    live = data_module(shards, vae=vae, batch_size=3, seed=3, **options)
    batches = []
    for module in (fresh, live):
        module.setup("fit")
        (batch,) = module.train_dataloader()
        order = np.argsort(batch["__key__"])
        batches.append({name: batch[name][order] for name in ("image", "masks")})
    for name, values in batches[0].items():
        assert torch.equal(values, batches[1][name]), name


def test_a_torch_without_lanczos_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    torch_resize.check_torch_resizes.cache_clear()
    monkeypatch.setattr(torch_resize.functional, "interpolate", refuses)
    assert PictureSettings(resize="torch").resize == "torch"  # as of a cache that is read with this torch
    with pytest.raises(UsageError, match=r"resize: torch \S+ has no Lanczos; install 2.13 or newer, or choose pillow"):
        ExampleSettings(PictureSettings(resize="torch"), MaskSettings(source="center"))
