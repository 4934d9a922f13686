"""A batch of a cache is what its members say, read one by one with NumPy and Pillow from plain tars."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents
from PIL import Image

import inpaint_data.pipeline as ip
from inpaint_data import Autoencoder, LatentCache, UsageError
from inpaint_data.batch import SIZES
from inpaint_data.encoding.noise import normal_noise
from inpaint_data.encoding.vae import sample_posterior
from inpaint_data.latent_cache.merged_file import INDEX_FILE
from inpaint_data.masks.soft_border import SoftBorder
from inpaint_data.seeding import draws_for, generator_for, sample_id

SETTINGS: dict[str, Any] = {"resolution": 16, "masks": "mixture", "mask_offset": (-3, 5), "upscale": True}
KINDS: dict[str, dict[str, Any]] = {
    "float16": {"variants": 3},
    "one mask": {"variants": 1},
    "float32": {"variants": 2, "storage": "float32"},
    "bfloat16": {"variants": 2, "storage": "bfloat16"},
    "int8": {"variants": 3, "storage": "int8"},
    "mean alone": {"variants": 2, "keep": "mean"},
    "soft": {"variants": 3, "soft": SoftBorder("ramp", 3)},
    "no posterior": {"variants": 2},
    "no masked latents": {"variants": 2, "masked_latents": False},
    "pixels": {"variants": 2, "pixels": ["image"]},
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("in")
    for number in range(3):
        write_shard(folder / f"{number}.tar", small_samples(5, number))
    return str(folder)


def array(sample: dict[str, Any], name: str) -> Any:
    """The float32 values of a member, as the format says; None where there is none."""
    if f"{name}.npy" not in sample:
        return None
    stored = np.load(io.BytesIO(sample[f"{name}.npy"]))
    if stored.dtype == np.uint16:
        return (stored.astype("u4") << 16).view("f4")
    if stored.dtype == np.int8:
        return stored * np.load(io.BytesIO(sample[f"{name}.scale.npy"]))
    return stored.astype(np.float32)


def read_one_by_one(root: Path, chosen: list[int], posterior: str, variant: int | str, epoch: int) -> dict[str, Any]:
    """The batch, the slow and obvious way."""
    samples = []
    for tar in sorted(root.glob("*.tar")):
        samples += [(tar.name, sample) for sample in wds.WebDataset(str(tar), shardshuffle=False)]
    batch: dict[str, list[Any]] = {}
    for shard, sample in [samples[row] for row in chosen]:
        record, key = json.loads(sample["inpaint.json"]), sample["__key__"]
        count, name = len(record["variants"]), sample_id(shard, key)
        k = variant if variant != "draw" else int(generator_for(0, name, epoch, "variant").integers(count))
        drawn: dict[str, Any] = record["variants"][k]
        for member in ("latents", "masked_latents"):
            if (values := array(sample, member)) is None:
                continue
            raw = torch.from_numpy(values[k] if member == "masked_latents" else values)[None]
            if posterior != "moments" and record["has_posterior"] and "means" not in record:
                mean = raw.chunk(2, dim=1)[0]
                noise = normal_noise(0, [name], [epoch], member, tuple(mean.shape[1:]))
                raw = mean if posterior == "mode" else sample_posterior(raw, noise)
            batch.setdefault(member, []).append(raw)
        is_soft = "soft_mask.png" in sample
        levels = np.array(Image.open(io.BytesIO(sample["soft_mask.png" if is_soft else "mask.pbm"])))
        mask = torch.from_numpy(levels.reshape(count, -1, levels.shape[-1])[k].copy())
        batch.setdefault("mask", []).append(
            mask.to(torch.float32).div(255)[None, None] if is_soft else mask[None, None]
        )
        if "image_pixels.png" in sample:
            pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(sample["image_pixels.png"]))))
            batch.setdefault("image", []).append(pixels.permute(2, 0, 1)[None])
        entries: dict[str, Any] = {name: torch.tensor([record[name]]) for name in SIZES}
        entries |= {"flip": torch.tensor([record["flip"]]), "offset": torch.tensor([drawn["offset"]])}
        entries |= {"variant": torch.tensor([k]), "__key__": key, "__shard__": shard}
        entries |= {"caption": drawn.get("caption", record["caption"]), "carried": {"txt": sample["txt"]}}
        entries |= {name: drawn[name] for name in ("window", "generator", "edits")}
        for name, value in entries.items():
            batch.setdefault(name, []).append(value)
    return {name: torch.cat(each) if isinstance(each[0], torch.Tensor) else each for name, each in batch.items()}


def assert_equal(found: Any, expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype, name
            assert torch.equal(found[name], value), name
            assert found[name].is_contiguous() or name == "image", name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_batch_is_what_its_members_say(kind: str, shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    vae = Autoencoder(Pooling()) if kind == "no posterior" else vae
    cache_latents(shards, str(tmp_path / "c"), vae=vae, **SETTINGS | KINDS[kind])
    bare = shutil.copytree(tmp_path / "c", tmp_path / "bare", ignore=shutil.ignore_patterns(INDEX_FILE))
    posteriors = ("mode",) if "keep" in KINDS[kind] else ("mode", "moments", "sample")
    variants = ("draw", KINDS[kind]["variants"] - 1)
    chosen = [7, 0, 14, 3, 9, 8, 1]
    for posterior in posteriors:
        for variant in variants:
            expected = read_one_by_one(tmp_path / "c", chosen, posterior, variant, epoch=3)
            for root in (tmp_path / "c", bare):
                cache = LatentCache(root, posterior, variant)  # type: ignore[arg-type]
                for _ in range(2):  # with its checksums, and straight from the tars
                    assert_equal(cache.batch(chosen, epoch=3), expected)
            assert_equal(LatentCache(bare, posterior, variant, check="never").batch(chosen, epoch=3), expected)  # type: ignore[arg-type]


def test_a_batch_of_several_caches_is_in_the_order_that_was_asked_for(
    shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    for name in ("a", "b"):
        cache_latents(f"{shards}/{'0' if name == 'a' else '[12]'}.tar", str(tmp_path / name), vae=vae, **SETTINGS)
    cache = LatentCache([tmp_path / "a", tmp_path / "b"], "sample")
    none = ([], [-1], [len(cache)], [1.5], [True], ["1"], torch.tensor([0.0]), [0, None], 3, None, {0, 1}, [[0, 1]])
    for wrong in none:
        with pytest.raises(IndexError, match="give one or more, as a list of whole numbers from 0 to 14"):
            cache.batch(wrong)  # type: ignore[arg-type]
    for epoch in (1.0, True, "1", -1, 2**70):
        with pytest.raises(UsageError, match=r"epoch: .* is not a whole number from 0"):
            cache.batch([0], epoch)  # type: ignore[arg-type]
    rows = [9, 2, 14, 0, 5, 4]
    for _ in range(2):
        batch = cache.batch(rows)
        assert list(zip(batch["__shard__"], batch["__key__"], strict=True)) == [cache.places()[row] for row in rows]
        for at, row in enumerate(rows):
            assert torch.equal(batch["latents"][at : at + 1], cache[row]["latents"])
            assert batch["carried"][at] == cache[row]["carried"][0]


def test_the_stage_that_reads_tars_gives_the_batches_of_the_cache(
    shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    cache_latents(shards, str(tmp_path / "c"), vae=vae, **SETTINGS, variants=3)
    cache = LatentCache(tmp_path / "c", "sample")
    tars = sorted(map(str, (tmp_path / "c").glob("*.tar")))
    stages = [wds.SimpleShardList(tars), ip.read_shards(), ip.cached(posterior="sample"), ip.bucketed(5)]
    found = list(wds.DataPipeline(*stages))
    assert len(found) == 3
    for number, batch in enumerate(found):
        assert_equal(batch, dict(cache.batch(range(5 * number, 5 * number + 5))))


def test_arrays_that_another_tool_laid_out_are_read_beside_ours(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "c"), vae=vae, **SETTINGS, variants=2)
    expected = LatentCache(tmp_path / "c", variant=1).batch(range(15))
    (tmp_path / "odd").mkdir()
    shutil.copy(tmp_path / "c" / "cache.json", tmp_path / "odd")
    tar = tmp_path / "c" / "1.tar"
    samples = list(wds.WebDataset(str(tar), shardshuffle=False))
    with wds.TarWriter(str(tmp_path / "odd.tar")) as writer:
        for row, sample in enumerate(samples):
            own = {name: data for name, data in sample.items() if not name.startswith("__") or name == "__key__"}
            if row % 2:
                own["latents.npy"] = wider(own["latents.npy"])
                own["masked_latents.npy"] = wider(own["masked_latents.npy"])
            writer.write(own)
    rebuilt = with_tar(tmp_path / "c", tmp_path / "odd.tar", tmp_path / "rebuilt")
    for check in ("first", "never"):
        cache = LatentCache(rebuilt, variant=1, check=check)  # type: ignore[arg-type]
        for _ in range(2):
            assert_equal(cache.batch(range(15)), dict(expected))


def wider(data: bytes) -> bytes:
    """The same array in .npy with more room in its header."""
    values = np.load(io.BytesIO(data))
    header = f"{{'descr': '{values.dtype.str}', 'fortran_order': False, 'shape': {values.shape}, }}".ljust(181) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + values.tobytes()


def with_tar(cache: Path, tar: Path, out: Path) -> Path:
    """The cache with another tar in place of its second, whose sidecar says where its members are."""
    from inpaint_data.latent_cache.format import CacheFile, Sidecar, read_cache_file
    from inpaint_data.latent_cache.index import Place, ShardIndex
    from inpaint_data.shards.naming import shard_identity
    from inpaint_data.shards.reading import Fault, locate_samples

    shutil.copytree(cache, out, ignore=shutil.ignore_patterns(INDEX_FILE))
    shutil.copy(tar, out / "1.tar")
    old, data = Sidecar.read(out / "1.json"), tar.read_bytes()
    places = []
    for sample in locate_samples(str(tar)):
        assert not isinstance(sample, Fault)
        extents = {name: (start, sample.sizes[name]) for name, start in sample.offsets.items()}
        places.append({name: Place.of(at, data[at : at + size]) for name, (at, size) in extents.items()})
    identity, index = shard_identity(str(tar)), ShardIndex.of(old.keys, places, old.index.target_sizes.tolist())
    fields = vars(old) | {"output": {"size": identity.size, "sha256": identity.sha256}, "index": index}
    fields.pop("sha256", None)
    (out / "1.json").write_bytes(Sidecar(**fields).to_bytes())
    whole = read_cache_file(out)
    (out / "cache.json").write_bytes(CacheFile(whole.fingerprint, whole.settings_json, None, None).to_bytes())
    return out


def test_draws_of_a_batch_are_those_of_its_samples() -> None:
    names = [sample_id(f"shard-{number % 7}", f"key {number}") for number in range(500)]
    for count in (1, 2, 3, 4, 7, 100, 2**31 + 5, 2**32):
        expected = [int(generator_for(5, name, 2, "variant").integers(count)) for name in names]
        assert draws_for(5, names, 2, "variant", count) == expected
