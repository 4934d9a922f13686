"""A soft mask is an obvious blur or ramp in 256 levels, the same from a cache as live."""

import io
import json
import math
import operator
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import PHOTOS, run, write_shard
from diffusers.image_processor import VaeImageProcessor
from flat import cache_latents, data_module
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_fills import Recording, live_variants
from test_verify import forge
from torch import Tensor

from inpaint_data import (
    Autoencoder,
    InpaintTransform,
    LatentCache,
    SoftBorder,
    UsageError,
    contact_sheet,
    index_cache,
    verify_cache,
)
from inpaint_data.encoding.recipes import conditioning
from inpaint_data.latent_cache.encodings import png_bytes
from inpaint_data.masks.soft_border import from_levels, gaussian_weights, to_levels

SETTINGS: dict[str, Any] = {
    "resolution": 64, "masks": "mixture", "mask_offset": (-4, 9), "batch_size": 2, "soft": SoftBorder("gaussian", 3)
}  # fmt: skip


def blobs(seed: int, count: int, height: int, width: int) -> Tensor:
    """(count, 2, height, width) bool."""
    rough = torch.rand(count, 2, -(-height // 4), -(-width // 4), generator=torch.Generator().manual_seed(seed)) > 0.6
    return rough.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :height, :width].contiguous()


def blurred(mask: np.ndarray, radius: int) -> np.ndarray:
    """By A1111's window, pixel by pixel: its weights in whole numbers, the picture mirrored at its edges, and 8 bits
    after each of its two passes."""
    weights, reach = gaussian_weights(radius), int(2.5 * radius + 0.5)

    def mirrored(place: int, size: int) -> int:
        while not 0 <= place < size:
            place = -place if place < 0 else 2 * (size - 1) - place
            if size == 1:
                return 0
        return place

    def along_rows(values: np.ndarray) -> np.ndarray:
        width = values.shape[1]
        columns = [[mirrored(x + step, width) for step in range(-reach, reach + 1)] for x in range(width)]
        sums = np.stack([sum(w * values[:, x] for w, x in zip(weights, row, strict=True)) for row in columns], 1)
        return (sums + 128) // 256

    return along_rows(along_rows(mask.astype(np.int64) * 255).T).T.astype(np.uint8)


def ramped(mask: np.ndarray, radius: int) -> np.ndarray:
    """The mean of the mask grown and shrunk by every number of pixels up to the radius, by OpenCV."""
    total = mask.astype(np.int64)
    for k in range(1, radius + 1):
        window = np.ones((2 * k + 1, 2 * k + 1), np.uint8)
        total += cv2.dilate(mask.astype(np.uint8), window)
        total += cv2.erode(mask.astype(np.uint8), window)  # outside the frame counts as masked there too
    steps = 2 * radius + 1
    return ((510 * total + steps) // (2 * steps)).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["gaussian", "ramp"]), st.integers(1, 6), st.integers(1, 24), st.integers(1, 24), st.integers(0, 99)
)
def test_a_soft_border_equals_a_slow_blur_or_ramp_to_the_level(
    kind: Any, radius: int, height: int, width: int, seed: int
) -> None:
    mask = blobs(seed, 1, height, width)
    soft = SoftBorder(kind, radius)(mask)
    slow = blurred if kind == "gaussian" else ramped
    for k in range(2):
        expected = torch.from_numpy(slow(mask[0, k].numpy(), radius))
        assert torch.equal(to_levels(soft[0, k]), expected)
        assert torch.equal(soft[0, k], expected / 255)


def a1111s_blur(levels: np.ndarray, radius: int) -> np.ndarray:
    """Its mask blur: OpenCV's along the rows, then along the columns; (H, W) uint8."""
    size = 2 * int(2.5 * radius + 0.5) + 1
    return np.asarray(cv2.GaussianBlur(cv2.GaussianBlur(levels, (size, 1), radius), (1, size), radius))


@pytest.mark.parametrize("radius", range(1, 65))
def test_a_gaussian_border_is_a1111s_mask_blur_to_the_level(radius: int) -> None:
    mask = blobs(radius, 1, 96, 80)
    soft = torch.randint(0, 256, mask.shape, generator=torch.Generator().manual_seed(radius)) / 255
    for before in (mask, soft):
        ours = to_levels(SoftBorder("gaussian", radius)(before))
        for k in range(2):
            theirs = a1111s_blur(to_levels(before[0, k].float()).numpy(), radius)
            assert torch.equal(ours[0, k], torch.from_numpy(theirs))
    assert sum(gaussian_weights(radius)) == 256


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 64), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_the_hard_mask_is_where_a_ramp_is_above_one_half(radius: int, height: int, width: int, seed: int) -> None:
    mask = blobs(seed, 1, height, width)
    assert torch.equal(SoftBorder("ramp", radius)(mask) > 0.5, mask)


def test_a_ramp_rises_in_equal_steps_over_the_radius_on_each_side() -> None:
    mask = torch.zeros(1, 1, 1, 20, dtype=torch.bool)
    mask[..., 10:] = True
    levels = to_levels(SoftBorder("ramp", 3)(mask))[0, 0, 0].tolist()
    assert levels == [0] * 7 + [math.floor(255 * i / 7 + 0.5) for i in range(1, 7)] + [255] * 7


@pytest.mark.parametrize("soft", [SoftBorder("gaussian", 4), SoftBorder("ramp", 5)])
def test_a_soft_mask_is_the_same_alone_and_in_any_batch(soft: SoftBorder) -> None:
    mask = blobs(0, 5, 40, 56)
    together = soft(mask)
    for i in range(5):
        assert torch.equal(together[i : i + 1], soft(mask[i : i + 1]))
        assert torch.equal(together[i : i + 1, 1:], soft(mask[i : i + 1, 1:]))
    assert soft(mask[:0]).shape == (0, 2, 40, 56)
    assert soft(mask[:0]).dtype == together.dtype == torch.float32
    for whole in (torch.zeros(1, 1, 9, 9), torch.ones(1, 1, 9, 9)):
        assert torch.equal(soft(whole.bool()), whole)


def test_every_level_is_exactly_k_of_255() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    soft = from_levels(levels)
    assert soft.tolist() == [float(np.float32(k) / np.float32(255)) for k in range(256)]
    assert torch.equal(to_levels(soft), levels)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": "box"}, "soft: kind: 'box' is unknown; choose from gaussian, ramp"),
        ({"radius": 0}, r"soft: radius: 0 is not a whole number of 1\.\.\.64"),
        ({"radius": 2.5}, "soft: radius: 2.5 is not a whole number of .* give one"),
        ({"radius": None}, "soft: radius: None"),
        ({"kind": ["ramp"]}, "soft: kind: .'ramp'. is unknown"),
        ({"radius": 65}, "soft: radius: 65"),
    ],
)
def test_a_border_that_cannot_be_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        SoftBorder(**fields)


@pytest.mark.parametrize("soft", ["ramp", ["ramp", 4], 3])
def test_what_is_no_border_is_refused_before_the_first_batch(soft: Any, tmp_path: Path) -> None:
    for make in (
        lambda: InpaintTransform(None, soft=soft),
        lambda: data_module(str(tmp_path), soft=soft),
    ):
        with pytest.raises(UsageError, match=rf"soft: {re.escape(repr(soft))} is .* border; give a SoftBorder"):
            make()


def test_settings_take_a_border_as_a_mapping_and_the_transform_does_not(tmp_path: Path) -> None:
    assert data_module(str(tmp_path), soft={"kind": "ramp"}).masks.soft == SoftBorder("ramp")
    with pytest.raises(UsageError, match="soft: kind: 'box' is unknown; choose from gaussian, ramp"):
        data_module(str(tmp_path), soft={"kind": "box"})
    with pytest.raises(UsageError, match=r"soft: .*width"):
        data_module(str(tmp_path), soft={"width": 3})
    with pytest.raises(UsageError, match=r"soft: \{'kind': 'ramp'\} is .* border; give a SoftBorder"):
        InpaintTransform(None, soft={"kind": "ramp"})


def test_a_soft_batch_is_the_hard_one_with_a_border(vae: Autoencoder) -> None:
    pictures = {"image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), "__key__": ["a", "b"]}
    masks = blobs(0, 2, 64, 64)
    for k in (0, 1):
        batch = pictures | {"mask": masks[:, k : k + 1], "variant": [k, k]}
        hard = InpaintTransform(vae, (-3, 5))(batch)
        soft = InpaintTransform(vae, (-3, 5), soft=SoftBorder("ramp", 4))(batch)
        assert torch.equal(soft["masked_latents"], hard["masked_latents"])  # a ramp leaves its half where it was
        assert torch.equal(soft["mask"], SoftBorder("ramp", 4)(hard["mask"]))
        assert torch.equal(soft["mask"] > 0.5, hard["mask"])
        assert hard.keys() == soft.keys()


def thin_and_thick() -> Tensor:
    """(3, 1, 64, 64) bool: a line of 5 pixels, strokes and single pixels, and a disc."""
    masks = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    masks[0, :, 30:35] = True
    masks[1] = blobs(3, 1, 64, 64)[0, 1:] & (torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.3)
    masks[2, 0] = torch.from_numpy(cv2.circle(np.zeros((64, 64), np.uint8), (30, 40), 15, (1,), -1)).bool()
    return masks


@pytest.mark.parametrize("preset", ["was", "diffusers", "comfy", "comfy-conditioning", "fooocus", "a1111"])
@pytest.mark.parametrize(("kind", "radius"), [("gaussian", r) for r in (1, 4, 16, 64)] + [("ramp", r) for r in (1, 6)])
def test_what_is_hidden_is_what_recipes_feed(preset: str, kind: Any, radius: int) -> None:
    """Against StableDiffusionInpaintPipeline's own processors and fill, given the hard mask `soft >= 0.5`."""
    recording = Recording()
    pictures = torch.randint(1, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    transform = InpaintTransform(Autoencoder(recording), fill="grey", preset=preset, soft=SoftBorder(kind, radius))
    batch = {"image": pictures, "mask": thin_and_thick(), "__key__": ["a", "b", "c"]}
    ours = transform(batch)
    fed = conditioning("sd15-inpaint", {"scaling_factor": 1.0})(
        {"mask": ours["mask"], "masked_latents": torch.zeros(3, 4, 64, 64)}
    )[:, :1]
    hard = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True).preprocess(ours["mask"])
    assert torch.equal(fed, hard)
    if preset == "comfy":  # its node hides under the mask as it was drawn, which grew meanwhile
        hard = hard * batch["mask"]
    masked = VaeImageProcessor().preprocess(pictures / 255) * (hard < 0.5)
    assert torch.equal(recording.given == 0, (masked == 0))
    assert torch.allclose(recording.given, masked, rtol=0, atol=2**-23)


def test_a_line_that_a_blur_wipes_out_is_neither_hidden_nor_fed(vae: Autoencoder) -> None:
    batch = {"image": torch.rand(3, 3, 64, 64), "mask": thin_and_thick(), "__key__": ["a", "b", "c"]}
    ours = InpaintTransform(vae, 0, soft=SoftBorder("gaussian", 4))(batch)
    assert ours["mask"][0].max() > 0.4
    assert not (ours["mask"][0] >= 0.5).any()
    assert torch.equal(ours["masked_latents"][0], ours["latents"][0])


@pytest.mark.parametrize(
    "change",
    [{}, {"soft": SoftBorder("ramp", 5), "max_aspect": 2.0, "bucket_step": 16, "crop": ("center", "random+flip")}],
)
def test_a_cached_soft_batch_equals_the_live_one(
    change: dict[str, Any], shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    chosen = SETTINGS | change
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, variants=2, storage="float32", **chosen)
    caches = [LatentCache(tmp_path / "cache", "moments", variant=k) for k in (0, 1)]
    places = {key: row for row, (_, key) in enumerate(caches[0].places())}
    seen = 0
    for batches in live_variants(shards, vae, 2, **chosen):
        rows = [places[key] for key in batches[0]["__key__"]]
        seen += len(rows)
        for cache, live in zip(caches, batches, strict=True):
            cached = cache.batch(rows)
            assert cached.keys() == live.keys()
            assert cached["mask"].dtype == live["mask"].dtype == torch.float32
            for name, value in live.items():
                same = torch.equal if isinstance(value, Tensor) else operator.eq
                assert same(cached[name], value), name
    assert seen == len(places) == (24 if change else 12)
    assert verify_cache(tmp_path / "cache", deep=True, against=shards, vae=vae).ok


def test_a_plain_reader_opens_the_soft_masks(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, variants=2, **SETTINGS)
    caches = [LatentCache(tmp_path / "cache", variant=k) for k in (0, 1)]
    pictures = wds.WebDataset(str(tmp_path / "cache" / "000000.tar"), shardshuffle=False).decode("pil")
    grey = wds.WebDataset(str(tmp_path / "cache" / "000000.tar"), shardshuffle=False)
    for i, (sample, raw) in enumerate(zip(pictures, grey, strict=True)):
        assert "mask.pbm" not in sample
        levels = np.array(sample["soft_mask.png"].convert("L")).reshape(2, 64, 64)
        assert Image.open(io.BytesIO(raw["soft_mask.png"])).mode == "L"
        for k, cache in enumerate(caches):
            assert torch.equal(cache[i]["mask"][0, 0], torch.from_numpy(levels[k]) / 255)
            coverage = json.loads(raw["inpaint.json"])["variants"][k]["coverage"]
            assert coverage == pytest.approx(levels[k].mean() / 255, abs=1e-6)


def test_the_border_is_in_the_fingerprint_and_only_where_there_is_one(
    shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    out = str(tmp_path / "cache")
    hard = {name: value for name, value in SETTINGS.items() if name != "soft"}
    cache_latents(shards, out, vae=vae, **SETTINGS)
    for other in (hard, SETTINGS | {"soft": SoftBorder("gaussian", 4)}, SETTINGS | {"soft": SoftBorder("ramp", 3)}):
        with pytest.raises(UsageError, match=r"soft(\.\w+)?: the cache has"):
            cache_latents(shards, out, vae=vae, **other)
    with pytest.raises(UsageError, match=r"soft\.radius: the cache has 3"):
        data_module(out, vae=vae, soft=SoftBorder("gaussian", 5)).train_dataloader()
    cache_latents(shards, str(tmp_path / "hard"), vae=vae, **hard)
    assert LatentCache(tmp_path / "hard").settings.masks.soft is None
    assert LatentCache(out).settings.masks.soft == SETTINGS["soft"]


def mask_png(value: int = 255) -> bytes:
    file = io.BytesIO()
    Image.new("L", (451, 300), value).save(file, "PNG")
    return file.getvalue()


def test_the_samples_own_mask_never_meets_the_caches(tmp_path: Path, vae: Autoencoder) -> None:
    """They have names of their own: no sample is quarantined for its mask, and where it is carried it is as it was."""
    samples = {"cat": {"jpg": (PHOTOS / "cat.jpg").read_bytes(), "mask.png": mask_png()}}
    write_shard(tmp_path / "in" / "a.tar", samples)
    for carry in ("none", "crop", "original"):
        out = tmp_path / carry
        cache_latents(str(tmp_path / "in"), str(out), vae=vae, carry_image=carry, **SETTINGS | {"masks": "sample"})
        entry = LatentCache(out)[0]
        assert entry["carried"][0].get("mask.png") == (mask_png() if carry == "original" else None)
        assert "soft_mask.png" not in entry["carried"][0]
        assert entry["mask"].dtype == torch.float32
        assert verify_cache(out, deep=True, against=str(tmp_path / "in"), vae=vae).ok


def test_a_member_that_is_called_like_the_caches_masks_is_quarantined_by_name(tmp_path: Path, vae: Autoencoder) -> None:
    cat = {"jpg": (PHOTOS / "cat.jpg").read_bytes(), "mask.png": mask_png()}
    write_shard(tmp_path / "in" / "a.tar", {"cat": cat, "dog": cat | {"soft_mask.png": mask_png()}})
    for soft in (None, SoftBorder("ramp", 3)):
        options = SETTINGS | {"soft": soft, "masks": "sample", "max_bad_fraction": 1}
        summary = cache_latents(str(tmp_path / "in"), str(tmp_path / str(soft)), vae=vae, **options)
        assert [(entry.key, entry.reason) for _, entry in summary.quarantined] == [
            ("dog", "it carries a member called soft_mask.png, which the cache uses itself; rename it")
        ]


def test_a_hard_cache_still_carries_the_samples_mask(tmp_path: Path, vae: Autoencoder) -> None:
    samples = {"cat": {"jpg": (PHOTOS / "cat.jpg").read_bytes(), "mask.png": mask_png()}}
    write_shard(tmp_path / "in" / "a.tar", samples)
    cache_latents(str(tmp_path / "in"), str(tmp_path / "out"), vae=vae, resolution=64, carry_image="original")
    entry = LatentCache(tmp_path / "out")[0]
    assert entry["carried"][0]["mask.png"] == mask_png()
    assert entry["mask"].dtype == torch.bool
    assert verify_cache(tmp_path / "out").ok


def test_fresh_masks_are_softened_as_the_cache_says_or_as_asked(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    out = str(tmp_path / "cache")
    cache_latents(shards, out, vae=vae, carry_image="crop", **SETTINGS)
    for asked, expected in (
        ({}, SETTINGS["soft"]),
        ({"soft": SoftBorder("ramp", 2)}, SoftBorder("ramp", 2)),
        ({"soft": None}, SETTINGS["soft"]),
    ):
        module = data_module(out, vae=vae, fresh_masks=True, batch_size=3, **asked)
        module.setup()
        batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
        live = data_module(shards, vae=vae, **SETTINGS | {"soft": None, "batch_size": 3})
        live.setup()
        hard = live.on_after_batch_transfer(next(iter(live.train_dataloader())), 0)
        assert batch["__key__"] == hard["__key__"]
        assert torch.equal(batch["mask"], expected(hard["mask"]))


@pytest.mark.parametrize(
    ("made", "asked"), [({}, {"soft": SoftBorder("ramp", 2)}), ({"soft": SoftBorder("ramp", 2)}, {})]
)
def test_fresh_masks_of_the_samples_own_are_softened_from_a_cache_that_carries_them(
    made: dict[str, Any], asked: dict[str, Any], tmp_path: Path, vae: Autoencoder
) -> None:
    samples = {"cat": {"jpg": (PHOTOS / "cat.jpg").read_bytes(), "mask.png": mask_png()}}
    write_shard(tmp_path / "in" / "a.tar", samples)
    out = str(tmp_path / "out")
    cache_latents(str(tmp_path / "in"), out, vae=vae, resolution=64, mask_offset=0, carry_image="original", **made)
    module = data_module(out, vae=vae, fresh_masks=True, batch_size=1, **asked)
    module.setup()
    batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert torch.equal(batch["mask"], torch.ones(1, 1, 64, 64))
    assert batch["carried"][0]["mask.png"] == mask_png()


@pytest.mark.parametrize("carry", ["none", "crop", "original"])
def test_tars_of_soft_masks_can_be_indexed(carry: str, shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    out = tmp_path / "cache"
    cache_latents(shards, str(out), vae=vae, variants=2, carry_image=carry, **SETTINGS)
    before = LatentCache(out, variant=1).batch(range(12))
    for path in out.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    assert index_cache(out, vae) == ["000000.tar", "000001.tar"]
    after = LatentCache(out, variant=1).batch(range(12))
    assert torch.equal(before["mask"], after["mask"])
    assert after["carried"] == before["carried"]
    assert verify_cache(out).ok


def corrupt(data: bytes) -> bytes:
    return data[:60] + bytes([data[60] ^ 8]) + data[61:]


LEVELS = np.full((2, 64, 64), 77, np.uint8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (corrupt, "soft_mask.png: image is damaged"),
        (lambda data: data[:-20], "soft_mask.png: image is damaged"),
        (lambda data: data + b"x", "soft_mask.png: is not laid out"),
        (lambda _: b"", "soft_mask.png: not a grey PNG of 8 bits"),
        (lambda _: b"P4\n64 128\n" + bytes(8 * 128), "soft_mask.png: not a grey PNG of 8 bits"),
        (lambda _: png_bytes(LEVELS[:, :32]), "soft_mask.png: its masks have the shape"),
        (lambda _: png_bytes(LEVELS[:, :, :32]), "soft_mask.png: its masks have the shape"),
        (lambda _: png_bytes(LEVELS), "says coverage"),
    ],
)
def test_a_damaged_soft_mask_is_named(change: Any, says: str, shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, variants=2, **SETTINGS)
    key = LatentCache(tmp_path / "cache").places()[1][1]

    def damage(samples: dict[str, dict[str, bytes]]) -> None:
        samples[key]["soft_mask.png"] = change(samples[key]["soft_mask.png"])

    forge(tmp_path / "cache", "000000", damage)
    problems = verify_cache(tmp_path / "cache").problems
    assert {(problem.file, problem.key) for problem in problems} == {("000000.tar", key)}
    assert says in problems[0].problem


def test_a_soft_cache_without_its_masks_is_named(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **SETTINGS)
    key = LatentCache(tmp_path / "cache").places()[1][1]
    forge(tmp_path / "cache", "000000", lambda samples: samples[key].pop("soft_mask.png") and None)
    assert f"soft_mask.png of sample '{key}'" in str(verify_cache(tmp_path / "cache").problems[0])


def test_a_yaml_softens_and_the_sheet_shows_it(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cache.yaml").write_text(
        "masks:\n  soft:\n    kind: ramp\n    radius: 6\n  fill: noise\n  source: lama-thick\n"
    )
    out = str(tmp_path / "cache")
    config = str(tmp_path / "cache.yaml")
    flags = ["--shards", shards, "--out", out, "--resolution", "64", "--vae", "demo"]
    code, _, err = run(capsys, "cache", "--config", config, *flags)
    assert code == 0, err
    assert LatentCache(out).settings.masks.soft == SoftBorder("ramp", 6)
    assert LatentCache(out).settings.masks.fill == "noise"
    written = json.loads((Path(out) / "cache.json").read_bytes())["settings"]["masks"]
    assert (written["soft"], written["fill"]) == ({"kind": "ramp", "radius": 6}, "noise")
    sheet = contact_sheet(out, shards, str(tmp_path / "sheet.png"), count=2)
    assert Image.open(sheet).width > 6 * 192
    with_flag = (
        "cache",
        "--shards",
        shards,
        "--out",
        out,
        "--resolution",
        "64",
        "--vae",
        "demo",
        "--masks",
        "lama-thick",
        "--fill",
        "noise",
    )
    code, said, _ = run(capsys, *with_flag, "--soft", "{kind: ramp, radius: 6}")
    assert (code, "2 were already there" in said) == (0, True)
    (tmp_path / "cache.yaml").write_text("masks:\n  soft:\n    radius: 0\n")
    code, _, err = run(capsys, "cache", "--config", config, "--shards", shards, "--out", out + "2")
    assert code == 2
    assert "radius: 0" in err
