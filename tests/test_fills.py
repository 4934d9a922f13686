"""Every fill hides the hole, keeps the known pixels, and depends on nothing but the sample."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import PHOTOS, Pooling
from flat import cache_latents, data_module
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from inpaint_data import Autoencoder, Batch, InpaintTransform, LatentCache, UsageError
from inpaint_data.batch import is_batch
from inpaint_data.encoding.fills import fill_hole, hole_noise
from inpaint_data.masks.presets import FILLS
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.stages import image_stages
from inpaint_data.shards.naming import expand_shards

HIDING = [fill for fill in FILLS if fill != "original"]
SIDE = 64


def photos(count: int, side: int = SIDE) -> Tensor:
    """(count, 3, side, side) uint8 of real photographs."""
    paths = sorted(PHOTOS.glob("*.jpg"))[:count]
    pictures = [np.asarray(Image.open(path).convert("RGB").resize((side, side))) for path in paths]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def holes(count: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """(count, 1, side, side) bool: a box and a few single pixels in each."""
    mask = torch.rand(count, 1, side, side, generator=torch.Generator().manual_seed(seed)) > 0.99
    for i in range(count):
        mask[i, :, 5 + i : 30 + 3 * i, 10 : 40 + i] = True
    return mask


def in_range(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def noise_for_all(pixels: Tensor) -> Tensor:
    count = len(pixels)
    return hole_noise(0, [str(i) for i in range(count)], [0] * count, *pixels.shape[-2:])


@pytest.mark.parametrize("fill", FILLS)
def test_known_pixels_keep_every_bit(fill: Any) -> None:
    mask = holes(3)
    for pixels in (in_range(photos(3)), torch.rand(3, 3, SIDE, SIDE) * 2 - 1):
        before = pixels.clone()
        filled = fill_hole(pixels, mask, fill, -1.0, noise_for_all(pixels))
        assert torch.equal(torch.where(mask, 0, filled), torch.where(mask, 0, pixels))
        assert torch.equal(pixels, before)
        assert filled.dtype == torch.float32
        assert -1 <= filled.min() <= filled.max() <= 1


@pytest.mark.parametrize("fill", HIDING)
@pytest.mark.parametrize("known", ["most", "one pixel", "nothing"])
def test_nothing_of_what_was_hidden_shows(fill: Any, known: str) -> None:
    mask = holes(2) if known == "most" else torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool)
    if known == "one pixel":
        mask[..., 3, 3] = False
    pixels = in_range(photos(2))
    filled = [
        fill_hole(torch.where(mask, hidden, pixels), mask, fill, -1.0, noise_for_all(pixels))
        for hidden in (pixels, torch.tensor(-1.0), torch.tensor(1.0), pixels.flip(0))
    ]
    assert all(torch.equal(filled[0], each) for each in filled)


@pytest.mark.parametrize("fill", FILLS)
def test_a_sample_is_filled_alike_alone_and_in_any_batch(fill: Any) -> None:
    pixels, mask = in_range(photos(4)), holes(4)
    noise = noise_for_all(pixels)
    together = fill_hole(pixels, mask, fill, -1.0, noise)
    for i in range(4):
        alone = fill_hole(pixels[i : i + 1], mask[i : i + 1], fill, -1.0, noise[i : i + 1])
        assert torch.equal(together[i : i + 1], alone)
    assert fill_hole(pixels[:0], mask[:0], fill, -1.0, noise[:0]).shape == (0, 3, SIDE, SIDE)


@pytest.mark.parametrize("fill", FILLS)
def test_one_mask_may_serve_all_pictures(fill: Any) -> None:
    pixels, mask = in_range(photos(2)), holes(1)
    noise = noise_for_all(pixels)
    both = fill_hole(pixels, mask.expand(2, -1, -1, -1), fill, -1.0, noise)
    assert torch.equal(fill_hole(pixels, mask, fill, -1.0, noise), both)


@pytest.mark.parametrize("fill", FILLS)
def test_a_mask_that_hides_nothing_changes_nothing(fill: Any) -> None:
    pixels = in_range(photos(2))
    nothing = torch.zeros(2, 1, SIDE, SIDE, dtype=torch.bool)
    assert torch.equal(fill_hole(pixels, nothing, fill, -1.0, noise_for_all(pixels)), pixels)


@pytest.mark.parametrize("fill", HIDING)
def test_a_mask_that_hides_everything_gives_the_documented_colour(fill: Any) -> None:
    pixels = in_range(photos(2))
    filled = fill_hole(pixels, torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool), fill, -1.0, noise_for_all(pixels))
    colour = {"grey": 0.0, "black": -1.0, "white": 1.0, "blur": -1.0}.get(fill, 128 / 127.5 - 1)
    if fill == "noise":
        assert filled.std() > 0.4
    else:
        assert torch.allclose(filled, torch.tensor(colour), atol=1e-6, rtol=0)


def as_automatic1111(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Its pyramid, step by step with Pillow: (H, W, 3) uint8 and (H, W) uint8 with 255 = repaint -> (H, W, 3) uint8."""
    image = Image.fromarray(picture).convert("RGBA").convert("RGBa")
    known = Image.new("RGBa", image.size)
    known.paste(image, mask=ImageOps.invert(Image.fromarray(mask)))
    result = Image.new("RGBA", image.size)
    for radius in (256, 64, 16, 16, 4, 4, 4, 4, 2, 2, 0):
        result.alpha_composite(known.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA"))
    return np.asarray(result.convert("RGB"))


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 48), st.integers(8, 48), st.sampled_from([0.0, 0.1, 0.6, 0.99, 1.0]), st.integers(0, 2**31))
def test_blur_is_automatic1111s_pyramid_in_eight_bits(height: int, width: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = rng.random((height, width)) < share
    mask[: height // 2] |= share > 0.5
    reference = torch.from_numpy(as_automatic1111(picture, mask.astype(np.uint8) * 255).copy()).permute(2, 0, 1)[None]
    pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
    for low in (-1.0, 0.0):
        scale = 127.5 if low else 255
        filled = fill_hole(pixels.float() / scale + low, torch.from_numpy(mask)[None, None], "blur", low)
        assert torch.equal(filled, reference.float() / scale + low)


@pytest.mark.parametrize(("fill", "method"), [("telea", cv2.INPAINT_TELEA), ("navier-stokes", cv2.INPAINT_NS)])
def test_opencvs_fills_are_its_inpaint_with_radius_three_of_the_blanked_picture(fill: Any, method: int) -> None:
    pictures, mask = photos(3), holes(3)
    filled = fill_hole(in_range(pictures), mask, fill, -1.0)
    for i in range(3):
        picture = torch.where(mask[i], 128, pictures[i]).permute(1, 2, 0).contiguous().numpy()
        painted = cv2.inpaint(picture, mask[i, 0].numpy().astype(np.uint8), 3, method)
        assert torch.equal(filled[i], in_range(torch.from_numpy(painted)).permute(2, 0, 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.1, 0.5, 0.95]), st.integers(0, 2**31))
def test_the_mean_is_that_of_the_known_pixels_in_eight_bits(height: int, width: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures, masks = rng.integers(0, 256, (2, 3, height, width), np.uint8), rng.random((2, 1, height, width)) < share
    filled = fill_hole(in_range(torch.from_numpy(pictures)), torch.from_numpy(masks), "mean", -1.0)
    for picture, mask, ours in zip(pictures, masks[:, 0], filled, strict=True):
        for channel in range(3):
            values = picture[channel][~mask].astype(object)  # Python's whole numbers
            mean = (2 * sum(values) + len(values)) // (2 * len(values)) if len(values) else 128
            expected = in_range(torch.tensor(mean, dtype=torch.uint8))
            assert (ours[channel][torch.from_numpy(mask)] == expected).all()


def test_noise_is_normal_around_grey_with_half_the_range_and_cut_at_the_ends() -> None:
    pixels = torch.zeros(1, 3, 256, 256)
    noise = hole_noise(0, ["a"], [0], 256, 256)
    everything = torch.ones(1, 1, 256, 256, dtype=torch.bool)
    filled = fill_hole(pixels, everything, "noise", -1.0, noise)
    assert torch.equal(filled, (noise / 2).clamp(-1, 1))
    assert abs(filled.mean()) < 0.01
    assert 0.045 - 0.005 < (filled.abs() == 1).float().mean() < 0.0455 + 0.005  # beyond two deviations
    from_zero = fill_hole(pixels, everything, "noise", 0.0, noise)
    assert torch.allclose(from_zero * 2 - 1, filled, atol=1e-6)
    with pytest.raises(UsageError, match="draw it with hole_noise"):
        fill_hole(pixels, everything, "noise", -1.0)


class Recording(Pooling):
    """Keeps the pictures it is given."""

    def encode(self, pixels: Tensor) -> Tensor:
        self.given = pixels.clone()
        return super().encode(pixels)


def hidden_by(fill: Any, keys: list[str], variant: int = 0, seed: int = 0) -> Tensor:
    """(B, 3, H, W) in [-1, 1] as the autoencoder is given them."""
    recording = Recording()
    batch = {"image": photos(len(keys)), "mask": holes(len(keys)), "__key__": keys, "seed": seed}
    batch["variant"] = [variant] * len(keys)
    InpaintTransform(Autoencoder(recording), mask_offset=0, fill=fill)(batch)
    return recording.given


@pytest.mark.parametrize("fill", FILLS)
def test_the_transform_encodes_what_fill_hole_gives(fill: Any) -> None:
    pixels = in_range(photos(2))
    noise = hole_noise(3, ["x", "y"], [5, 5], SIDE, SIDE)
    given = hidden_by(fill, ["x", "y"], variant=5, seed=3)
    assert torch.equal(given, fill_hole(pixels, holes(2), fill, -1.0, noise))


def test_noise_differs_by_key_variant_and_seed_and_by_nothing_else() -> None:
    one = hidden_by("noise", ["a"])
    assert torch.equal(one, hidden_by("noise", ["a", "b"])[:1])
    for other in (hidden_by("noise", ["b"]), hidden_by("noise", ["a"], 1), hidden_by("noise", ["a"], 0, 1)):
        assert not torch.equal(one, other)


def test_each_sample_of_a_batch_may_have_a_variant_of_its_own() -> None:
    keys = ["a", "b", "a"]
    together = hole_noise(0, keys, [0, 3, 1], 8, 16)
    for i, (key, variant) in enumerate(zip(keys, [0, 3, 1], strict=True)):
        assert torch.equal(together[i : i + 1], hole_noise(0, [key], [variant], 8, 16))
    assert not torch.equal(together[0], together[2])


def live_variants(shards: str, vae: Autoencoder, variants: int, **chosen: Any) -> list[list[Batch]]:
    """The batches of a job, each encoded live in all its variants."""
    module = data_module(predict_source=shards, vae=vae, posterior="moments", **chosen)
    module.setup("predict")
    settings = ExampleSettings(module.pictures, module.masks)
    stages = image_stages(expand_shards(shards), settings, [], module.batch_size, range(variants), 1)
    return [module.encoder.variants(each) for each in wds.DataPipeline(*stages) if is_batch(each)]


@pytest.mark.parametrize("fill", ["noise", "blur", "telea"])
def test_a_cached_fill_is_the_live_one_and_another_is_refused(
    fill: Any, shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    chosen: dict[str, Any] = {"resolution": 64, "masks": "lama-thick", "batch_size": 4, "fill": fill}
    out = str(tmp_path / "cache")
    cache_latents(shards, out, vae=vae, storage="float32", variants=2, **chosen)
    live = live_variants(shards, vae, 2, **chosen)
    for k in (0, 1):
        cached = LatentCache(out, "moments", variant=k).batch(range(12))
        assert torch.equal(cached["masked_latents"], torch.cat([batches[k]["masked_latents"] for batches in live]))
    with pytest.raises(UsageError, match=f'fill: the cache has "{fill}", this run "mean"'):
        cache_latents(shards, out, vae=vae, storage="float32", variants=2, **chosen | {"fill": "mean"})
