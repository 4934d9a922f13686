"""A cache is a plain WebDataset, holds what the live transform gives, and resumes where it stopped."""

import io
import json
import shutil
import tarfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents, data_module
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint_data import Autoencoder, CacheError, LatentCache, RandomOffset, UsageError, verify_cache
from inpaint_data.batch import SIZES, Batch, is_batch
from inpaint_data.latent_cache.encodings import npy_bytes, pbm_bytes, read_npy, read_pbm
from inpaint_data.masks.offsets import Offset
from inpaint_data.pictures.settings import ExampleSettings
from inpaint_data.pipeline.stages import image_stages
from inpaint_data.shards.naming import expand_shards
from inpaint_data.shards.reading import Fault, ShardEnd

SETTINGS = {"resolution": 64, "masks": "mixture", "mask_offset": (-4, 9), "batch_size": 2}
NO_PROCESS = 2**30  # more than Linux gives numbers to


def test_five_lines_without_this_package_open_the_cache(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, variants=3, **SETTINGS)
    # README: begin plain reader
    for sample in wds.WebDataset(str(tmp_path / "cache" / "000000.tar"), shardshuffle=False):
        mean, log_variance = np.split(np.load(io.BytesIO(sample["latents.npy"])), 2)
        masked_latents = np.load(io.BytesIO(sample["masked_latents.npy"]))
        masks = np.array(Image.open(io.BytesIO(sample["mask.pbm"]))).reshape(-1, 64, 64)
        offsets = [variant["offset"] for variant in json.loads(sample["inpaint.json"])["variants"]]
        # README: end plain reader
        assert mean.shape == log_variance.shape == (4, 8, 8)
        assert mean.dtype == masked_latents.dtype == np.float16
        assert masked_latents.shape == (3, 8, 8, 8)
        assert masks.shape == (3, 64, 64)
        assert masks.dtype == bool
        assert len(offsets) == 3


def test_any_reader_sees_white_where_the_batch_says_repaint(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, variants=2, **SETTINGS)
    caches = [LatentCache(tmp_path / "cache", variant=k) for k in (0, 1)]
    stored = {}
    for path in sorted((tmp_path / "cache").glob("*.tar")):
        for sample in wds.WebDataset(str(path), shardshuffle=False):
            stored[sample["__key__"]] = np.array(Image.open(io.BytesIO(sample["mask.pbm"])).convert("L"))
    assert len(stored) == 12
    for k, cache in enumerate(caches):
        for i in range(len(cache)):
            entry = cache[i]
            picture = stored[entry["__key__"][0]].reshape(2, 64, 64)[k]
            assert np.array_equal(picture == 255, entry["mask"][0, 0].numpy())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 40), st.integers(0, 1000))
def test_masks_come_back_from_one_bit_a_pixel(count: int, height: int, width: int, seed: int) -> None:
    masks = np.random.default_rng(seed).random((count, height, width)) < 0.5
    data = pbm_bytes(masks)
    assert np.array_equal(read_pbm(data, count), masks)
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))).reshape(masks.shape), masks)


def live_batches(shards: str, vae: Autoencoder, variants: int = 1, **settings: object) -> list[list[Batch]]:
    """Encoded live in the batches that a job makes, which end with their shard: of each the K variants."""
    module = data_module(predict_source=shards, vae=vae, posterior="moments", **SETTINGS | settings)
    module.setup("predict")
    settings_of_examples = ExampleSettings(module.pictures, module.masks, module.loading.seed)
    stages = image_stages(
        expand_shards(shards), settings_of_examples, (), module.batch_size, variants=range(variants), threads=2
    )
    items = [item for item in wds.DataPipeline(*stages) if not isinstance(item, ShardEnd)]
    assert not any(isinstance(item, Fault) for item in items)
    if variants == 1:
        return [[module.on_after_batch_transfer(batch, 0)] for batch in items]
    return [module.encoder.variants(batch) for batch in items]


@pytest.mark.parametrize("mask_offset", [(-4, 9), RandomOffset(low=-4, high=9, windows=("octagon", "cross"))])
def test_a_cached_batch_equals_the_live_batch_of_the_same_samples(
    mask_offset: Offset, shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    given = SETTINGS | {"mask_offset": mask_offset, "variants": 2}
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **given)
    caches = [LatentCache(tmp_path / "cache", "moments", variant=k) for k in (0, 1)]
    start = 0
    for batches in live_batches(shards, vae, **given):
        rows = list(range(start, start + len(batches[0]["__key__"])))
        for cache, live in zip(caches, batches, strict=True):
            cached = cache.batch(rows)
            assert cached.keys() == live.keys()
            for name in ("latents", "masked_latents"):
                assert torch.equal(cached[name].half(), live[name].half())
            for name in ("mask", "offset", "variant", "flip", *SIZES):
                assert torch.equal(cached[name], live[name])
            for name in ("__key__", "__shard__", "caption", "carried", "generator", "edits", "window"):
                assert cached[name] == live[name]
        start += len(rows)
    assert start == len(caches[0]) == 12


def test_float32_storage_keeps_every_bit(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, storage="float32", **SETTINGS)
    live = live_batches(shards, vae)
    cached = LatentCache(tmp_path / "cache", "moments").batch(range(12))
    assert torch.equal(cached["latents"], torch.cat([batch["latents"] for [batch] in live]))
    assert torch.equal(cached["masked_latents"], torch.cat([batch["masked_latents"] for [batch] in live]))


def test_variants_share_the_picture_but_not_the_mask(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, variants=4, **SETTINGS)
    batches = [LatentCache(tmp_path / "cache", variant=k).batch(range(12)) for k in range(4)]
    assert all(torch.equal(batch["latents"], batches[0]["latents"]) for batch in batches)
    assert len({batch["mask"].numpy().tobytes() for batch in batches}) == 4
    drawn = LatentCache(tmp_path / "cache")
    epochs = []
    for epoch in range(3):
        drawn.epoch = epoch
        epochs.append([int(drawn[i]["variant"]) for i in range(12)])
    assert len(set(map(tuple, epochs))) == 3
    assert {variant for drawn_variants in epochs for variant in drawn_variants} == {0, 1, 2, 3}


def test_a_second_start_skips_what_is_done(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    out = str(tmp_path / "cache")
    first = cache_latents(shards, out, vae=vae, **SETTINGS)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(out).glob("0*")}
    second = cache_latents(shards, out, vae=vae, **SETTINGS)
    assert (first.shards, len(first.plan.done), first.cached) == (2, 0, 12)
    assert (second.shards, len(second.plan.done), second.cached) == (0, 2, 0)
    assert before == {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in Path(out).glob("0*")}


def contents(cache: Path) -> dict[str, bytes]:
    """All that is in a cache but the stamps of its inputs, which have the time in them."""
    return {path.name: path.read_bytes() for path in cache.iterdir() if not path.name.startswith(".")}


def test_equal_input_gives_equal_bytes_whatever_the_number_of_threads_and_wherever_it_stopped(
    shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    made = {}
    for threads in (1, 3):
        cache_latents(shards, str(tmp_path / f"cache{threads}"), vae=vae, num_workers=threads, **SETTINGS)
        made[threads] = contents(tmp_path / f"cache{threads}")
    assert made[1] == made[3]

    # A run that died: one shard committed, one tar without a sidecar, one temporary file.
    dead = tmp_path / "cache3"
    (dead / "000001.json").unlink()
    (dead / "000001.tar").write_bytes(b"half")
    (dead / f".000002.tar.{NO_PROCESS}.tmp").write_bytes(b"half")
    assert len(cache_latents(shards, str(dead), vae=vae, **SETTINGS).plan.done) == 1
    assert contents(dead) == made[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_live_variants_are_sampled_with_the_noise_of_the_cache(dtype: str, shards: str, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"resolution": 64, "masks": "boxes", "batch_size": 4, "dtype": dtype, "vae": "demo"}
    cache_latents(shards, str(tmp_path / "cache"), variants=2, storage="float32", **chosen)
    module = data_module(predict_source=shards, posterior="sample", **chosen)
    module.setup("predict")
    settings = ExampleSettings(module.pictures, module.masks)
    stages = image_stages(expand_shards(shards), settings, [], 4, range(2), 1)
    live = [module.encoder.variants(batch) for batch in wds.DataPipeline(*stages) if is_batch(batch)]
    for k in (0, 1):
        cached = LatentCache(tmp_path / "cache", "sample", variant=k).batch(range(12))
        for key in ("latents", "masked_latents"):
            assert torch.equal(cached[key], torch.cat([batches[k][key] for batches in live]))


def test_every_input_sample_is_cached_or_quarantined_with_its_reason(
    tmp_path: Path, photo_bytes: dict[str, bytes], vae: Autoencoder
) -> None:
    cat, white = photo_bytes["cat"], io.BytesIO()
    Image.new("L", (451, 300), 255).save(white, "PNG")
    wrong = io.BytesIO()
    Image.new("L", (100, 100), 255).save(wrong, "PNG")
    whole = {"jpg": cat, "mask.png": white.getvalue()}
    samples = {
        "good": whole,
        "cut": {"jpg": cat[: len(cat) // 2], "mask.png": white.getvalue()},
        "bare": {"jpg": cat},
        "other_size": {"jpg": cat, "mask.png": wrong.getvalue()},
        "words_only": {"txt": b"no picture"},
        "reserved": whole | {"latents.npy": b"0"},
        "last": whole,
    }
    write_shard(tmp_path / "shards" / "a.tar", samples)
    out = tmp_path / "cache"
    with pytest.raises(CacheError, match=r"5 of 7 samples are quarantined, more than max_bad_fraction 0\.01"):
        cache_latents(str(tmp_path / "shards"), str(out), vae=vae, resolution=64, batch_size=2)
    sidecar = json.loads((out / "a.json").read_bytes())
    reasons = {entry["key"]: entry["reason"] for entry in sidecar["quarantined"]}
    assert sidecar["keys"] == ["good", "last"]
    assert set(sidecar["keys"]) | set(reasons) == set(samples)
    assert "damaged" in reasons["cut"]
    assert "add bare.mask.png" in reasons["bare"]
    assert "mask.png is 100 high and 100 wide, but image is 300 high and 451 wide" in reasons["other_size"]
    assert "latents.npy" in reasons["reserved"]
    assert verify_cache(out).totals["samples"] == 2

    again = cache_latents(str(tmp_path / "shards"), str(tmp_path / "b"), vae=vae, resolution=64, max_bad_fraction=1.0)
    assert (again.samples_in, again.cached, len(again.quarantined)) == (7, 2, 5)


def test_a_shard_with_nothing_usable_is_committed_as_such(tmp_path: Path, vae: Autoencoder) -> None:
    write_shard(tmp_path / "shards" / "a.tar", {"x": {"txt": b"1"}, "y": {"txt": b"2"}})
    summary = cache_latents(
        str(tmp_path / "shards"), str(tmp_path / "cache"), vae=vae, max_bad_fraction=1.0, **SETTINGS
    )
    assert (summary.shards, summary.cached, len(summary.quarantined)) == (1, 0, 2)
    found = verify_cache(tmp_path / "cache").totals
    assert found == {"shards": 1, "samples": 0, "quarantined": 2, "filtered": 0, "bytes": 10240}
    with pytest.raises(CacheError, match="has no samples, 2 are quarantined and 0 filtered; fix them"):
        LatentCache(tmp_path / "cache")


def test_a_picture_that_turns_into_nan_is_quarantined_and_the_others_are_kept(
    tmp_path: Path, photo_bytes: dict[str, bytes]
) -> None:
    class Picky(torch.nn.Module):
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            pooled = torch.nn.functional.avg_pool2d(pixels, 8)
            white = (pixels > 0.99).flatten(1).all(1)
            return torch.where(white[:, None, None, None], float("nan"), pooled)

    white = io.BytesIO()
    Image.new("RGB", (64, 64), (255, 255, 255)).save(white, "PNG")
    cat = {"jpg": photo_bytes["cat"]}
    write_shard(tmp_path / "in" / "a.tar", {"one": cat, "white": {"png": white.getvalue()}, "two": cat})
    out = tmp_path / "cache"
    cache_latents(str(tmp_path / "in"), str(out), vae=Autoencoder(Picky()), max_bad_fraction=1.0, **SETTINGS)
    sidecar = json.loads((out / "a.json").read_bytes())
    assert sidecar["keys"] == ["one", "two"]
    assert [entry["key"] for entry in sidecar["quarantined"]] == ["white"]
    assert "NaN" in sidecar["quarantined"][0]["reason"]


def test_carried_members_come_back_by_name(shards: str, tmp_path: Path, vae: Autoencoder, photo_bytes: dict) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, carry_image="original", **SETTINGS)
    cache = LatentCache(tmp_path / "cache")
    for i, key in enumerate(photo_bytes):
        entry = cache[i]
        assert entry["carried"][0] == {"jpg": photo_bytes[key], "txt": f"a photo of {key}".encode()}
        assert entry["caption"] == [f"a photo of {key}"]


def test_other_settings_are_refused_and_each_difference_is_named(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    out = str(tmp_path / "cache")
    cache_latents(shards, out, vae=vae, **SETTINGS)
    with pytest.raises(UsageError) as caught:
        cache_latents(shards, out, vae=vae, **SETTINGS | {"mask_offset": 6, "resolution": 128})
    assert "masks.offset: the cache has [-4, 9], this run 6" in str(caught.value)
    assert "pictures.resolution: the cache has [64], this run [128]" in str(caught.value)
    assert "batch_size" not in str(caught.value)


def test_a_folder_that_is_no_cache_is_left_alone(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"holds 'holiday\.jpg' but no cache\.json"):
        cache_latents(shards, str(tmp_path / "photos"), vae=vae, **SETTINGS)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot write"):
        cache_latents(shards, str(tmp_path / "file"), vae=vae, **SETTINGS)
    with pytest.raises(CacheError, match="not a latent cache"):
        LatentCache(tmp_path / "photos")


def test_the_cache_needs_no_pax_headers_and_carries_no_time(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **SETTINGS)
    sidecar = json.loads((tmp_path / "cache" / "000000.json").read_bytes())
    with tarfile.open(tmp_path / "cache" / "000000.tar") as tar:
        for member in tar:
            key, name = member.name.split(".", 1)
            assert member.mtime == 0
            assert not member.pax_headers
            row = sidecar["keys"].index(key)
            assert sidecar["index"][name]["offset"][row] == member.offset_data
            assert sidecar["index"][name]["size"][row] == member.size


def test_changed_input_is_done_again(
    shards: str, tmp_path: Path, photo_bytes: dict[str, bytes], vae: Autoencoder
) -> None:
    out = tmp_path / "cache"
    cache_latents(shards, str(out), vae=vae, **SETTINGS)
    shutil.copy(Path(shards) / "000000.tar", tmp_path / "kept.tar")
    write_shard(Path(shards) / "000000.tar", {"cat": {"jpg": photo_bytes["cat"]}})
    summary = cache_latents(shards, str(out), vae=vae, **SETTINGS)
    assert (summary.shards, len(summary.plan.done), summary.cached) == (1, 1, 1)
    assert verify_cache(out, against=shards).ok
    assert verify_cache(out).totals["samples"] == 8


@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_shard_with_a_name_too_long_for_a_cache_is_refused_before_anything_is_encoded(
    letter: str, tmp_path: Path
) -> None:
    longest = letter * (234 // len(letter.encode()))
    write_shard(tmp_path / "in" / f"{longest}.tar", small_samples(1))
    out = tmp_path / "cache"
    assert cache_latents(str(tmp_path / "in"), str(out), vae=Pooling(), resolution=16, masks="boxes").cached == 1
    assert verify_cache(out).ok
    write_shard(tmp_path / "in" / f"{longest}y.tar", small_samples(1))
    with pytest.raises(UsageError, match=f"{longest}y\\.tar: its name is too long .* 234 bytes"):
        cache_latents(str(tmp_path / "in"), str(out), vae=Pooling(), resolution=16, masks="boxes")


@pytest.mark.parametrize("at", range(128))
def test_any_byte_changed_in_the_header_of_an_array_is_one_error_or_the_same_array(at: int) -> None:
    array = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    data = npy_bytes(array)
    for byte in (0, 10, *b"(\"'\\{0", 255):
        changed = data[:at] + bytes([byte]) + data[at + 1 :]
        with warnings.catch_warnings(), suppress(CacheError):
            warnings.simplefilter("ignore")  # Python's own, of backslashes
            assert read_npy(changed).nbytes <= len(data)


@pytest.mark.parametrize(
    "shape", ["(" * 3000, "(-1,)", f"({10**30},)", "(1" * 900, "('a',)", "None", "(True, 24)", "(2, 3, 4), 'x': 1"]
)
@pytest.mark.parametrize("kind", ["<f2", "|O", "|V2", "<i8", "no", "<f2\0"])
def test_no_header_of_an_array_gets_through_that_a_cache_does_not_write(shape: str, kind: str) -> None:
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with pytest.raises(CacheError, match="not an array, or not laid out"):
        read_npy(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(48))


@pytest.mark.parametrize(
    "data",
    [b"", b"P4", b"P4\n", b"P4\n1\n", b"P4\n0 0\n", b"P4\n-8 -1\n\0", b"P4\n8 " + b"9" * 5000 + b"\n", b"P5\n8 1\n\0"],
)
def test_a_damaged_mask_is_one_error(data: bytes) -> None:
    with pytest.raises(CacheError, match=r"mask\.pbm"):
        read_pbm(data, 1)
