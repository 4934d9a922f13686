"""What a training may take from: fresh masks, paired pictures, text, remote caches, tars without sidecars."""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run, write_shard
from flat import cache_latents, data_module
from lightning.pytorch import Trainer
from PIL import Image
from test_conditioning import flux_vae
from test_datamodule import Painter

from inpaint_data import (
    Autoencoder,
    CacheError,
    InpaintDataModule,
    InpaintTransform,
    LatentCache,
    RandomOffset,
    TextSettings,
    UsageError,
    index_cache,
    verify_cache,
)
from inpaint_data.batch import PAIRED
from inpaint_data.encoding.recipes import conditioning
from inpaint_data.latent_cache.encodings import npy_bytes
from inpaint_data.masks.presets import PRESETS, Preset
from inpaint_data.pictures.geometry import fitted
from inpaint_data.pipeline.image_indexing import index_shards
from inpaint_data.shards.naming import expand_shards, shard_identity, shard_size, shard_stamp

SETTINGS = {"resolution": 64, "masks": "mixture", "mask_offset": (-4, 9), "batch_size": 4}
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def batches(module: InpaintDataModule, stage: str = "train", epoch: int = 0) -> list[dict]:
    """All of an epoch, encoded, without a Trainer."""
    module.setup("fit")
    module.epoch = epoch
    return [module.on_after_batch_transfer(batch, 0) for batch in getattr(module, f"{stage}_dataloader")()]


# Fresh masks


@pytest.mark.parametrize("carry", ["original", "crop"])
@pytest.mark.parametrize(("posterior", "crop"), [("mode", "center"), ("sample", "center"), ("sample", "random")])
def test_fresh_masks_are_those_of_live_training_and_only_they_are_encoded(
    carry: str, posterior: str, crop: str, shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    """Random cuts are those of epoch 0: a cache holds them."""
    cache = str(tmp_path / "cache")
    cache_latents(
        shards, cache, vae=vae, carry_image=carry, storage="float32", crop=crop, **SETTINGS | {"batch_size": 1}
    )
    options = {"vae": vae, "posterior": posterior, **SETTINGS | {"batch_size": 1}}
    fresh = data_module(cache, fresh_masks=True, **options)
    live = data_module(shards, crop=crop, **options)
    seen, epochs = set(), (0, 3) if crop == "center" else (0,)
    for epoch in epochs:
        for ours, theirs in zip(batches(fresh, epoch=epoch), batches(live, epoch=epoch), strict=True):
            assert ours.keys() == theirs.keys()
            assert ours["__key__"] == theirs["__key__"]
            for name, value in theirs.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(ours[name], value), name
            seen.add(ours["mask"].numpy().tobytes())
    assert len(seen) > 9 * len(epochs), "new masks every epoch; some are full"


def test_blend_only_recipes_need_no_autoencoder_for_fresh_masks(shards: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    cache_latents(shards, cache, vae="demo", carry_image="crop", masked_latents=False, **SETTINGS)
    assert verify_cache(cache).ok
    module = data_module(cache, fresh_masks=True, recipe="sd3-blend", batch_size=4)
    first, later = batches(module)[0], batches(module, epoch=1)
    assert "masked_latents" not in first
    assert not module.encoder.transform.has_vae
    assert module.recipe.blend_mask(first).shape == (4, 1, 8, 8)
    row = [
        (i, j) for i, batch in enumerate(later) for j, key in enumerate(batch["__key__"]) if key == first["__key__"][0]
    ]
    assert not torch.equal(later[row[0][0]]["mask"][row[0][1]], first["mask"][0])


def test_given_masks_may_be_offset_afresh(tmp_path: Path, photo_bytes: dict[str, bytes], vae: Autoencoder) -> None:
    mask = io.BytesIO()
    picture = np.zeros((300, 451), np.uint8)
    picture[100:200, 150:250] = 255
    Image.fromarray(picture).save(mask, "PNG")
    write_shard(tmp_path / "in" / "a.tar", {"cat": {"jpg": photo_bytes["cat"], "mask.png": mask.getvalue()}})
    settings = SETTINGS | {"masks": "sample"}
    for carry in ("original", "crop"):
        cache_latents(str(tmp_path / "in"), str(tmp_path / carry), vae=vae, carry_image=carry, **settings)
    module = data_module(str(tmp_path / "original"), fresh_masks=True, vae=vae, batch_size=1, mask_offset=(-4, 9))
    offsets = [int(batches(module, epoch=epoch)[0]["offset"]) for epoch in range(12)]
    assert len(set(offsets)) > 4
    with pytest.raises(UsageError, match="masks: sample needs the original files"):
        batches(data_module(str(tmp_path / "crop"), fresh_masks=True, vae=vae))


# Validation


@pytest.mark.parametrize("source", ["cache", "shards"])
def test_validation_is_the_same_for_every_seed_and_epoch(
    source: str, shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    cache = str(tmp_path / "cache")
    cache_latents(shards, cache, vae=vae, variants=4, **SETTINGS)
    from_where, more = (cache, {"batch_size": 5}) if source == "cache" else (shards, {"vae": vae} | SETTINGS)
    made = [
        batches(data_module(from_where, val_source=from_where, seed=seed, posterior="sample", **more), "val", epoch)
        for seed, epoch in ((0, 0), (7, 2))
    ]
    assert sum(len(batch["__key__"]) for batch in made[0]) == 12
    for one, other in zip(*made, strict=True):
        assert one["__key__"] == other["__key__"]
        for name in ("mask", "offset", "latents", "masked_latents"):
            assert torch.equal(one[name], other[name])


def test_all_four_stages_run_from_a_cache_and_from_pictures(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    class All(Painter):
        test_step = predict_step = lambda self, batch: self.seen.append(batch)

    cache = str(tmp_path / "cache")
    cache_latents(shards, cache, vae=vae, **SETTINGS)
    for where, more in ((cache, {"batch_size": 4}), (shards, {"vae": vae} | SETTINGS)):
        data = data_module(where, val_source=where, test_source=where, predict_source=where, **more)
        for stage in ("fit", "validate", "test", "predict"):
            model = All()
            trainer = Trainer(max_epochs=1, num_sanity_val_steps=0, enable_checkpointing=False, **QUIET)
            getattr(trainer, stage)(model, datamodule=data)
            assert len(model.seen) == (6 if stage == "fit" else 3), (where, stage)
            assert all(torch.isfinite(batch["latents"]).all() for batch in model.seen)


# Paired targets


@pytest.mark.parametrize("name", ["target", "control"])
@pytest.mark.parametrize("source", ["cache", "shards"])
def test_a_paired_picture_is_cut_and_encoded_like_the_image(
    source: str, name: str, tmp_path: Path, photo_bytes: dict[str, bytes], vae: Autoencoder
) -> None:
    cat = Image.open(io.BytesIO(photo_bytes["cat"]))
    flipped = io.BytesIO()
    cat.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(flipped, "PNG")
    still = io.BytesIO()
    cat.save(still, "PNG")
    pairs = {
        "same": {"png": still.getvalue(), f"{name}.png": still.getvalue(), "txt": b"x"},
        "other": {"png": still.getvalue(), f"{name}.png": flipped.getvalue(), "txt": b"x"},
    }
    write_shard(tmp_path / "in" / "a.tar", pairs)
    settings = SETTINGS | {"crop": "random", name: True}
    if source == "cache":
        cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=vae, **settings)
        assert verify_cache(tmp_path / "cache").ok
        (batch,) = batches(data_module(str(tmp_path / "cache"), **{name: True}))
    else:
        (batch,) = batches(data_module(str(tmp_path / "in"), vae=vae, **settings))
    same, other = batch["__key__"].index("same"), batch["__key__"].index("other")
    assert torch.equal(batch[PAIRED[name]][same], batch["latents"][same])
    assert not torch.equal(batch[PAIRED[name]][other], batch["latents"][other])
    assert batch[PAIRED[name]].shape == batch["latents"].shape
    assert batch["carried"][same] == {"txt": b"x"}


@pytest.fixture
def with_control(tmp_path: Path, photo_bytes: dict[str, bytes]) -> str:
    samples = {key: {"jpg": photo_bytes[key], "control.jpg": photo_bytes[key]} for key in photo_bytes}
    write_shard(tmp_path / "in" / "a.tar", samples)
    return str(tmp_path / "in")


def z_image() -> dict[str, Any]:
    return {"vae": Autoencoder(flux_vae()), "recipe": "z-image-controlnet-inpaint"}


@pytest.mark.parametrize("source", ["cache", "shards", "fresh masks"])
def test_a_recipe_that_reads_a_conditioning_picture_is_fed_from_the_datamodule(
    source: str, with_control: str, tmp_path: Path
) -> None:
    settings = z_image() | SETTINGS | {"control": True}
    if source == "shards":
        module = data_module(with_control, **settings)
    else:
        cache_latents(with_control, str(tmp_path / "cache"), carry_image="crop", **settings)
        fresh = source == "fresh masks"
        more = {"vae": settings["vae"], "fresh_masks": True} if fresh else {}
        module = data_module(str(tmp_path / "cache"), recipe=settings["recipe"], batch_size=4, **more)
    batch = batches(module)[0]
    assert torch.equal(batch["control_latents"], batch["latents"])
    assert module.recipe(batch).shape == (len(batch["__key__"]), 33, 1, 8, 8)


@pytest.fixture
def with_references(tmp_path: Path, photo_bytes: dict[str, bytes]) -> str:
    """Each with the cat, and with itself squeezed to a strip; the second has no number that begins at 0."""
    strip = io.BytesIO()
    Image.open(io.BytesIO(photo_bytes["cat"])).resize((90, 30)).save(strip, "PNG")
    samples = {
        key: {"jpg": photo_bytes[key], "reference.3.png": strip.getvalue(), "reference.0.jpg": photo_bytes["cat"]}
        for key in photo_bytes
    }
    write_shard(tmp_path / "in" / "a.tar", samples)
    return str(tmp_path / "in")


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_references_are_fitted_whole_encoded_and_cached(
    storage: Any, with_references: str, tmp_path: Path, photo_bytes: dict[str, bytes]
) -> None:
    common = {"recipe": "wan-vace-reference", "resolution": 64, "masks": "boxes", "references": 2}
    wide = np.asarray(Image.open(io.BytesIO(photo_bytes["cat"])).resize((90, 30)))
    square = fitted(wide, (64, 64), flip=False)
    assert square.shape == (64, 64, 3)
    assert (square[:21] == 255).all()
    assert (square[43:] == 255).all()
    assert (square[21:43] != 255).any()
    assert np.array_equal(fitted(wide, (64, 64), flip=True), square[:, ::-1])

    live = data_module(with_references, vae="demo", **common)
    live.setup("fit")
    raw = next(iter(live.train_dataloader()))
    row = raw["__key__"].index("coffee")
    assert raw["references"].shape == (len(raw["__key__"]), 2, 3, 64, 64)
    assert np.array_equal(raw["references"][row, 1].permute(1, 2, 0).numpy(), square)
    encoded: Any = live.on_after_batch_transfer(raw, 0)
    assert "references" not in encoded
    vae = live.autoencoder
    alone = vae.mode(vae.encode(raw["references"][:, 1].float() / 127.5 - 1))
    assert torch.equal(encoded["reference_latents"][:, 1], alone)

    out = str(tmp_path / "cache")
    cache_latents(with_references, out, storage=storage, variants=2, device="cpu", **common)
    assert verify_cache(out, vae="demo", deep=True, against=with_references).problems == []
    cache = data_module(out, batch_size=len(raw["__key__"]), recipe=common["recipe"])
    bound = 2e-3 if storage == "float32" else 0.1
    rows = {key: row for row, key in enumerate(encoded["__key__"])}
    for batch in batches(cache):
        for row, key in enumerate(batch["__key__"]):
            if key in rows:
                apart = batch["reference_latents"][row] - encoded["reference_latents"][rows[key]]
                assert apart.abs().max() < bound
    assert cache.recipe(batch).shape[1:3] == (96, 3)
    assert batch["carried"][0] == {}
    (Path(out) / "cache.json").unlink()
    for sidecar in Path(out).glob("*.json"):
        sidecar.unlink()
    assert index_cache(out, "demo")
    assert batches(data_module(out, batch_size=4, recipe=common["recipe"]))


def test_other_numbers_of_references_and_recipes_without_them_are_told(with_references: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"recipe": "wan-vace-reference", "resolution": 64, "masks": "boxes"}
    with pytest.raises(UsageError, match=r"reads reference pictures.*reference\.jpg and set references: 1"):
        data_module(with_references, vae="demo", **common)
    cache_latents(with_references, str(tmp_path / "none"), **common | {"recipe": "wan-vace"})
    with pytest.raises(UsageError, match=r"reads reference_latents, which this cache .* references: 1"):
        batches(data_module(str(tmp_path / "none"), **common))
    with pytest.raises(CacheError, match=r"2 references \(reference\.0\.jpg, reference\.3\.png\).*set references: 2"):
        cache_latents(with_references, str(tmp_path / "one"), on_bad="raise", references=1, **common)
    recipe = conditioning("flux-kontext-reference-inpaint", Autoencoder(flux_vae()).config)
    latents = {"latents": torch.zeros(1, 16, 4, 4), "reference_latents": torch.zeros(1, 2, 16, 4, 4)}
    with pytest.raises(UsageError, match="takes one reference, not 2"):
        recipe.positions(latents)


READ_AS_PIXELS = {"sd15-controlnet-inpaint": "image", "sdxl-controlnet-inpaint": "control"}


@pytest.mark.parametrize("recipe", READ_AS_PIXELS)
@pytest.mark.parametrize("source", ["cache", "shards", "fresh masks", "indexed"])
def test_a_model_that_reads_pixels_is_fed_the_cut_picture(
    source: str, recipe: str, with_control: str, tmp_path: Path, vae: Autoencoder
) -> None:
    settings: dict[str, Any] = SETTINGS | {"vae": vae, "recipe": recipe, "control": True}
    live = data_module(with_control, **settings)
    live.setup("fit")
    cut = {
        key: picture
        for raw in live.train_dataloader()
        for key, picture in zip(raw["__key__"], raw[READ_AS_PIXELS[recipe]], strict=True)
    }
    module, cache = live, tmp_path / "cache"
    if source != "shards":
        cache_latents(with_control, str(cache), carry_image="crop", **settings)
        assert verify_cache(cache, vae=vae, deep=True, against=with_control).problems == []
        if source == "indexed":
            for sidecar in cache.glob("*.json"):
                sidecar.unlink()
            index_cache(cache, vae)
        more = {"vae": vae, "fresh_masks": True} if source == "fresh masks" else {}
        module = data_module(str(cache), recipe=recipe, batch_size=4, **more)
    for batch in batches(module):
        for key, picture in zip(batch["__key__"], batch[READ_AS_PIXELS[recipe]], strict=True):
            assert torch.equal(picture, cut[key])
        assert module.recipe(batch).shape == (len(batch["__key__"]), 3, 64, 64)


def test_pixels_that_a_cache_does_not_have_are_refused_and_a_damaged_picture_is_found(
    with_control: str, tmp_path: Path, vae: Autoencoder
) -> None:
    settings: dict[str, Any] = SETTINGS | {"vae": vae}
    cache_latents(with_control, str(tmp_path / "plain"), **settings)
    with pytest.raises(UsageError, match=r"the pixels of image, .* cache with pixels: \[image\] or the recipe"):
        batches(data_module(str(tmp_path / "plain"), recipe="sd15-controlnet-inpaint"))
    with pytest.raises(UsageError, match=r"pixels: control reads a conditioning picture.*set control: true"):
        cache_latents(with_control, str(tmp_path / "x"), **settings, pixels="control")
    cache_latents(with_control, str(tmp_path / "pixels"), **settings, pixels="image")
    (tar,) = (tmp_path / "pixels").glob("*.tar")
    data = bytearray(tar.read_bytes())
    data[data.index(b"IDAT") + 40] ^= 1
    tar.write_bytes(data)
    assert any("image_pixels.png" in str(problem) for problem in verify_cache(tmp_path / "pixels").problems)


def test_a_recipe_that_reads_conditioning_pictures_is_refused_where_they_are_not_encoded(
    with_control: str, tmp_path: Path
) -> None:
    settings, told = z_image() | SETTINGS, "control.jpg and (set|cache with) control: true"
    with pytest.raises(UsageError, match=told):
        data_module(with_control, **settings)
    with pytest.raises(UsageError, match=told):
        cache_latents(with_control, str(tmp_path / "cache"), **settings)
    cache_latents(with_control, str(tmp_path / "cache"), **settings | {"recipe": None})
    module = data_module(str(tmp_path / "cache"), recipe=settings["recipe"])
    with pytest.raises(UsageError, match=f"reads control_latents.*{told}"):
        batches(module)


def test_a_folder_of_pairs_is_packed_with_its_targets(
    tmp_path: Path, photo_bytes: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "cat_target.jpg"):
        (tmp_path / "photos" / name).write_bytes(photo_bytes["cat"])
    assert run(capsys, "pack", str(tmp_path / "photos"), "--out", str(tmp_path / "in"))[0] == 0
    flags = [
        "--shards",
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "cache"),
        "--resolution",
        "64",
        "--masks",
        "boxes",
        "--vae",
        "demo",
    ]
    assert run(capsys, "cache", *flags, "--target")[0] == 0
    (batch,) = batches(data_module(str(tmp_path / "cache"), target=True))
    assert torch.equal(batch["target_latents"], batch["latents"])
    (tmp_path / "photos" / "cat_target.jpg").write_bytes(photo_bytes["coffee"])
    code, _, err = run(capsys, "pack", str(tmp_path / "photos"), "--out", str(tmp_path / "other"))
    assert code == 1
    assert "cat_target.jpg: the target has another size than its image" in err


def test_samples_without_a_target_or_of_another_size_are_quarantined(
    tmp_path: Path, photo_bytes: dict[str, bytes], vae: Autoencoder
) -> None:
    cat, small = photo_bytes["cat"], io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, "PNG")
    samples = {"good": {"jpg": cat, "target.jpg": cat}, "none": {"jpg": cat}}
    samples["small"] = {"jpg": cat, "target.png": small.getvalue()}
    samples["two"] = {"jpg": cat, "target.jpg": cat, "target.png": small.getvalue()}
    write_shard(tmp_path / "in" / "a.tar", samples)
    cache_latents(str(tmp_path / "in"), str(tmp_path / "c"), vae=vae, target=True, max_bad_fraction=1.0, **SETTINGS)
    sidecar = json.loads((tmp_path / "c" / "a.json").read_bytes())
    reasons = {entry["key"]: entry["reason"] for entry in sidecar["quarantined"]}
    assert sidecar["keys"] == ["good"]
    assert "add target.jpg" in reasons["none"]
    assert "target.png is 64 high and 64 wide, but image is 300 high and 451 wide" in reasons["small"]
    assert "several targets" in reasons["two"]


# Text


@pytest.mark.parametrize("source", ["cache", "shards"])
def test_text_embeddings_arrive_as_tensors_and_captions_drop_out_in_training_only(
    source: str, tmp_path: Path, photo_bytes: dict[str, bytes], vae: Autoencoder
) -> None:
    def npy(value: float, tokens: int) -> bytes:
        file = io.BytesIO()
        np.save(file, np.full((tokens, 6), value, np.float16))
        return file.getvalue()

    keys = list(photo_bytes)
    members = {
        k: {"jpg": photo_bytes[k], "txt": k.encode(), "embeds.npy": npy(1 + i, 2 + i)} for i, k in enumerate(keys)
    }
    write_shard(tmp_path / "in" / "a.tar", members)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "embeds.npy").write_bytes(npy(-1, 1))
    text = TextSettings(["embeds.npy"], dropout=0.5, empty_prompt=str(tmp_path / "empty"))
    where, more = str(tmp_path / "in"), {"vae": vae} | SETTINGS
    if source == "cache":
        cache_latents(where, str(tmp_path / "cache"), vae=vae, **SETTINGS)
        where, more = str(tmp_path / "cache"), {}
    module = data_module(where, val_source=where, text=text, **more | {"batch_size": 12})
    (train,), (val,) = batches(module), batches(module, "val")
    for batch in (train, val):
        for row, key in enumerate(batch["__key__"]):
            number = keys.index(key)
            dropped = batch["caption"][row] == ""
            assert int(batch["embeds_mask"][row].sum()) == (1 if dropped else 2 + number)
            assert batch["embeds"][row, 0, 0] == (-1 if dropped else 1 + number)
            assert not batch["embeds"][row][~batch["embeds_mask"][row]].any()
    assert 0 < train["caption"].count("") < 12
    assert val["caption"].count("") == 0


# Carried members


def test_members_are_read_by_name_and_decoded_by_the_callers_own_function(
    shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, carry_image="original", **SETTINGS)
    assert LatentCache(tmp_path / "cache", carried=[])[0]["carried"] == [{}]
    assert LatentCache(tmp_path / "cache", carried=["txt"])[0]["carried"][0].keys() == {"txt"}
    decoded = LatentCache(tmp_path / "cache", carried={"txt": lambda data: len(data)})[0]["carried"]
    assert decoded == [{"txt": len("a photo of astronaut")}] or isinstance(decoded[0]["txt"], int)


# Remote


def put(folder: Path, url: str) -> str:
    import fsspec

    files = fsspec.filesystem("s3")
    for path in folder.iterdir():
        if not path.name.startswith("."):
            files.put_file(str(path), f"{url.removeprefix('s3://')}/{path.name}")
    return url


@pytest.mark.parametrize("room", [10**9, 200_000, 0], ids=["room for all", "room for one shard", "no room"])
def test_a_remote_cache_gives_the_same_batches_and_its_copies_stay_within_their_limit(
    room: int, s3: str, shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, carry_image="original", **SETTINGS)
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")]
    assert min(sizes) < 10**9
    room = max(sizes) if room == 200_000 else room
    url = put(tmp_path / "cache", f"{s3}/{tmp_path.name}")
    local = LatentCache(tmp_path / "cache")
    remote = LatentCache(url, mirror=str(tmp_path / "mirror"), mirror_bytes=room)
    for rows in ([0, 11, 5], [3, 4]):
        ours, theirs = remote.batch(rows), local.batch(rows)
        assert ours["carried"] == theirs["carried"]
        assert ours["__key__"] == theirs["__key__"]
        for name in ("latents", "masked_latents", "mask", "offset"):
            assert torch.equal(ours[name], theirs[name])
    copies = [path.stat().st_size for path in (tmp_path / "mirror").glob("*.copy")]
    assert sum(copies) <= room
    assert len(copies) == {0: 0, 10**9: 2}.get(room, 1)
    module = data_module(url, batch_size=6, mirror=str(tmp_path / "mirror"), mirror_bytes=room)
    assert sorted(key for batch in batches(module) for key in batch["__key__"]) == sorted(k for _, k in local.places())


def test_a_full_mirror_makes_room_by_what_others_left(s3: str, shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **SETTINGS)
    url, mirror = put(tmp_path / "cache", f"{s3}/{tmp_path.name}"), tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "old.copy").write_bytes(b"0" * 10**6)
    size = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    LatentCache(url, mirror=str(mirror), mirror_bytes=size).batch([0, 11])
    assert not (mirror / "old.copy").exists()
    assert len(list(mirror.glob("*.copy"))) == 2


def test_an_object_replaced_since_it_was_listed_is_read_anew(s3: str, shards: str, tmp_path: Path) -> None:
    import fsspec

    url = put(Path(shards), f"{s3}/{tmp_path.name}")
    first, second = expand_shards(f"{url}/*.tar")
    old = shard_stamp(first)
    for data in (b"one", b"two"):  # the first is read at once, the second when it was replaced again
        fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(first.removeprefix("s3://"), data)
        assert shard_identity(first).sha256 == hashlib.sha256(data).hexdigest()
        assert shard_stamp(first) != old
        expand_shards(f"{url}/*.tar")
    assert shard_identity(second).size == shard_size(second)


def test_a_remote_shard_that_is_not_what_its_sidecar_says_is_named(
    s3: str, shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **SETTINGS)
    tar = tmp_path / "cache" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    url = put(tmp_path / "cache", f"{s3}/{tmp_path.name}")
    cache = LatentCache(url, mirror=str(tmp_path / "mirror"))
    cache[0]
    with pytest.raises(Exception, match=r"000001\.tar: its \d+ bytes are not"):
        cache[11]
    with pytest.raises(CacheError, match=r"no cache\.json here"):
        LatentCache(f"{s3}/nothing-{tmp_path.name}", mirror=str(tmp_path / "mirror"))


def test_remote_pictures_are_trained_on_from_copies(s3: str, shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    url = put(Path(shards), f"{s3}/pictures-{tmp_path.name}")
    mirror = {"mirror": str(tmp_path / "mirror")}
    remote = batches(data_module(url, vae=vae, **SETTINGS, **mirror))
    local = batches(data_module(shards, vae=vae, **SETTINGS))
    assert all(torch.equal(one["latents"], other["latents"]) for one, other in zip(remote, local, strict=True))
    assert len(list((tmp_path / "mirror").glob("*.copy"))) == 2
    index_shards(f"{url}/*.tar")
    piecewise = batches(data_module(url, vae=vae, mirror=str(tmp_path / "small"), mirror_bytes=10, **SETTINGS))
    assert all(torch.equal(one["latents"], other["latents"]) for one, other in zip(piecewise, local, strict=True))
    assert not list((tmp_path / "small").glob("*.copy"))


# A job that still runs, and tars without sidecars


def test_a_cache_is_read_while_its_job_runs(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    out = tmp_path / "cache"
    cache_latents(f"{shards}/000000.tar", str(out), vae=vae, **SETTINGS)
    assert len(LatentCache(out)) == 5
    (out / f".000001.tar.{os.getpid()}.tmp").write_bytes(b"half")  # what a job has in hand
    (out / "000001.tar").write_bytes(b"renamed, not yet committed")
    assert len(LatentCache(out)) == 5
    cache_latents(shards, str(out), vae=vae, **SETTINGS)
    assert len(LatentCache(out)) == 12


def test_tars_without_sidecars_are_indexed_and_read_as_before(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    whole = tmp_path / "cache"
    offset = RandomOffset(low=-4, high=9, windows=("square", "octagon"))
    cache_latents(shards, str(whole), vae=vae, variants=2, carry_image="original", **SETTINGS | {"mask_offset": offset})
    bare = tmp_path / "bare"
    bare.mkdir()
    for tar in whole.glob("*.tar"):
        shutil.copy(tar, bare)
    with pytest.raises(UsageError, match="name the VAE that made these latents"):
        index_cache(bare)
    assert index_cache(bare, vae) == ["000000.tar", "000001.tar"]
    assert verify_cache(bare).ok
    ours, theirs = (
        LatentCache(bare, variant=1).batch(range(12)),
        LatentCache(whole, variant=1).batch(range(12)),
    )
    for name, value in theirs.items():
        same = torch.equal(ours[name], value) if isinstance(value, torch.Tensor) else ours[name] == value
        assert same, name
    (batch, *_) = batches(data_module(str(bare), fresh_masks=True, masks="mixture", vae=vae))
    assert batch["masked_latents"].shape == (8, 4, 8, 8)


def test_a_tar_from_before_windows_were_recorded_is_named(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **SETTINGS)
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "cache" / "000000.tar") as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            samples.setdefault(key, {})[name] = tar.extractfile(member).read()
    for members in samples.values():
        members["inpaint.json"] = re.sub(rb',"window":"square"', b"", members["inpaint.json"])
    write_shard(tmp_path / "old" / "000000.tar", samples)
    with pytest.raises(CacheError, match=r"variant 0 has the fields coverage, edits, generator, offset, not .*window"):
        index_cache(tmp_path / "old", vae)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_size", None),
        ("target_size", [64]),
        ("target_size", [[1], [2]]),
        ("target_size", [10**30, 64]),
        ("variants", []),
        ("variants", ["a"]),
        ("variants", [{"offset": 1e400}]),
        ("variants", [{"offset": [1]}]),
        ("variants", {"offset": 1}),
        ("latents.npy", b"\x93NUMPY\x01\x00\x09\x00((((((((("),
    ],
)
def test_a_record_or_an_array_that_no_cache_has_is_named_when_it_is_indexed(
    field: str, value: object, tmp_path: Path, vae: Autoencoder
) -> None:
    record = {"target_size": [64, 64], "variants": [{"offset": 0}]}
    if not isinstance(value, bytes):
        record[field] = value
    written = {name: value for name, value in record.items() if value is not None}
    members = {"inpaint.json": json.dumps(written).encode()}
    latents = value if isinstance(value, bytes) else npy_bytes(np.zeros((8, 8, 8), np.float16))
    write_shard(tmp_path / "0.tar", {"odd": members | {"latents.npy": latents, "mask.pbm": b""}})
    with pytest.raises(CacheError, match=r"0\.tar, sample 'odd': (inpaint\.json|latents\.npy).*take it out") as caught:
        index_cache(tmp_path, vae)
    assert "\n" not in str(caught.value)


def test_lost_sidecars_are_made_again_and_bad_samples_are_named(
    shards: str, tmp_path: Path, vae: Autoencoder, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    cache_latents(shards, str(out), vae=vae, **SETTINGS)
    (out / "000001.json").unlink()
    code, text, _ = run(capsys, "index", str(out))
    assert (code, text.strip()) == (0, "indexed 000001.tar")
    assert verify_cache(out).ok
    assert run(capsys, "index", str(out))[1].strip() == "every shard has its sidecar"
    write_shard(out / "z.tar", {"odd": {"latents.npy": b"x", "mask.pbm": b"x", "inpaint.json": b"{}"}})
    code, _, err = run(capsys, "index", str(out))
    assert code == 1
    assert "z.tar, sample 'odd': masked_latents.npy: is not there" in err
    assert not (out / "z.json").exists()
    for path in out.glob("*.json"):
        path.unlink()
    code, _, err = run(capsys, "index", str(out))
    assert code == 2
    assert "name the VAE" in err


# What is refused before the first step


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, photo_bytes: dict[str, bytes]) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("plain")
    write_shard(folder / "in" / "a.tar", {k: {"jpg": data} for k, data in list(photo_bytes.items())[:4]})
    cache_latents(str(folder / "in"), str(folder / "cache"), vae="demo", **SETTINGS)
    cache_latents(str(folder / "in"), str(folder / "bare"), vae="demo", masked_latents=False, **SETTINGS)
    return {"cache": str(folder / "cache"), "bare": str(folder / "bare")}


@pytest.mark.parametrize(
    ("source", "asked", "named"),
    [
        ("cache", {"resolution": 128}, "resolution: the cache has 64, this run 128"),
        ("cache", {"mask_offset": 6}, r"mask_offset: the cache has \[-4, 9\], this run 6"),
        ("cache", {"fill": "black"}, 'fill: the cache has "grey", this run "black"'),
        ("cache", {"masks": "boxes"}, 'masks: the cache has "mixture", this run "boxes"'),
        ("cache", {"preset": "comfy"}, 'growth: the cache has "square", this run "comfy"'),
        ("cache", {"dtype": "bfloat16"}, 'dtype: the cache has "float32", this run "bfloat16"'),
        ("cache", {"fingerprint": "feed"}, 'fingerprint: the cache has "[0-9a-f]{64}", this run "feed"'),
        ("cache", {"recipe": "sd15-inpaint"}, "sd15-inpaint: the VAE has 16 latent channels instead of 4"),
        ("cache", {"recipe": "sd3-controlnet-inpaint"}, "filled with grey, but sd3-controlnet-inpaint wants black"),
        ("cache", {"recipe": "sd3-inpaint", "posterior": "moments"}, "feeds latents; use mode or sample"),
        ("cache", {"recipe": "sd3-inpaint", "masked_latents": False}, "masked_latents: false, but recipe sd3-inpaint"),
        ("cache", {"val_source": "nowhere", "vae": "demo"}, "val_source: no such file: nowhere.*or name a cache"),
        (
            "cache",
            {"fresh_masks": True, "vae": "demo"},
            "fresh masks need the pictures.*make it with carry_image: crop",
        ),
        (
            "bare",
            {"recipe": "sd3-inpaint"},
            "recipe sd3-inpaint wants masked_latents, which this cache was made without",
        ),
        ("bare", {}, "the batches are to have masked_latents, which this cache was made without"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_before_the_first_step(
    source: str, asked: dict, named: str, plain: dict[str, str], tmp_path: Path
) -> None:
    model = Painter()
    trainer = Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    with pytest.raises(UsageError, match=named):
        trainer.fit(model, datamodule=data_module(plain[source], **asked))
    assert model.seen == []


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"recipe": "sd3-inpaint", "fill": "black", "vae": "demo"}, "fill: black, but recipe sd3-inpaint wants grey"),
        ({"fresh_masks": True}, "is not a cache; pictures have new masks every epoch anyway"),
        ({"source": None, "val_source": "x"}, "source: none was given, and fit needs it"),
        ({"batch_size": "4"}, "batch_size: '4' is not a positive whole number"),
        ({"mirror_bytes": -1}, "mirror_bytes: -1 is too small; give 0 or more"),
    ],
)
def test_settings_of_live_training_that_cannot_work_are_named(asked: dict, named: str, shards: str) -> None:
    with pytest.raises(UsageError, match=named):
        batches(data_module(**{"source": shards} | asked))


def test_fresh_masks_have_the_offsets_of_the_cache_unless_asked_otherwise(
    shards: str, tmp_path: Path, vae: Autoencoder
) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, carry_image="crop", **SETTINGS | {"mask_offset": (20, 30)})
    offsets = torch.cat([b["offset"] for b in batches(data_module(str(tmp_path / "cache"), vae=vae, fresh_masks=True))])
    assert 20 <= offsets.min() < offsets.max() <= 30


def test_members_that_no_sample_carries_are_named(shards: str, tmp_path: Path, vae: Autoencoder) -> None:
    cache_latents(shards, str(tmp_path / "cache"), vae=vae, **SETTINGS)
    with pytest.raises(UsageError, match="carried: 'txt' is not a list of names among txt"):
        LatentCache(tmp_path / "cache", carried="txt")
    with pytest.raises(UsageError, match=r"carried: \['depth\.npy'\] is not a list of names among txt"):
        LatentCache(tmp_path / "cache", carried=["depth.npy"])
    loader = torch.utils.data.DataLoader(LatentCache(tmp_path / "cache"), 5, num_workers=2)
    assert [len(batch["__key__"]) for batch in loader] == [5, 5, 2]


def test_a_cache_of_another_autoencoder_is_refused(plain: dict[str, str], vae: Autoencoder) -> None:
    assert batches(data_module(plain["cache"], vae="demo"))
    with pytest.raises(UsageError, match=r"vae\.weights_sha256: the cache has"):
        batches(data_module(plain["cache"], vae=vae))


def test_fewer_batches_than_ranks_are_refused(plain: dict[str, str]) -> None:
    from inpaint_data.training.loader import EpochLoader, Pass
    from inpaint_data.training.sources import CacheSource

    with pytest.raises(UsageError, match="4 samples make 1 batches of 4, fewer than one for each of 2 ranks"):
        len(EpochLoader(CacheSource(LatentCache(plain["cache"])), lambda: Pass(0, 4, 0, 2)))


def test_a_model_with_other_channels_is_refused(plain: dict[str, str]) -> None:
    module = data_module(plain["cache"], recipe="sd3-inpaint")
    with pytest.raises(UsageError, match=r"in_channels=9; give a transformer with in_channels=33"):
        module.recipe.check_model({"in_channels": 9})
    module.recipe.check_model({"in_channels": 33})


# Presets


def test_presets_differ_on_their_axes_alone(vae: Autoencoder) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 24:32, 24:32] = 1.0
    mask[..., 40, 40] = 0.5
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = {"image": image, "mask": mask, "__key__": ["a"]}

    def masked(preset: str | Preset, **more: object) -> tuple[set, torch.Tensor]:
        made = InpaintTransform(vae, preset=preset, **more)(batch)
        return {tuple(p) for p in made["mask"][0, 0].nonzero().tolist()}, made["masked_latents"]

    def box(low: int, high: int) -> set:
        return {(y, x) for y in range(low, high) for x in range(low, high)}

    assert masked("was")[0] == box(18, 38)
    assert masked("comfy")[0] == box(22, 35), "6 grows by 2 up and left, by 3 down and right"
    assert masked("diffusers")[0] == box(24, 32) | {(40, 40)}, "0.5 counts, nothing grows"
    ungrown = masked(Preset("none", "exclusive", "grey", None))
    assert ungrown[0] == box(24, 32)
    assert torch.equal(masked("comfy")[1], ungrown[1]), "comfy fills under the mask as it was drawn"
    assert not torch.equal(masked("was")[1], ungrown[1])
    assert not torch.equal(masked("was", fill="black")[1], masked("was")[1])
    assert PRESETS.keys() >= {"was", "comfy", "diffusers"}
    for wrong in ({"preset": "diffusers", "mask_offset": 6}, {"preset": "comfy", "mask_offset": -1}, {"preset": "x"}):
        with pytest.raises(UsageError, match=r"preset|shrink masks"):
            InpaintTransform(vae, **wrong)


def test_the_whole_way_from_a_cache_to_a_models_input(plain: dict[str, str]) -> None:
    module = data_module(plain["cache"], recipe="sd3-inpaint", batch_size=4, posterior="mode")
    (batch,) = batches(module)
    recipe = module.recipe
    assert recipe == conditioning("sd3-inpaint", LatentCache(plain["cache"]).settings.vae.config)
    noisy = recipe.latents(batch) + 1
    fed = recipe.model_input(noisy, batch)
    assert fed.shape == (4, 33, 8, 8)
    assert torch.equal(fed[:, :16], noisy)
    assert torch.equal(fed[:, 16:17], batch["mask"][..., ::8, ::8].float())


def test_fresh_masks_have_the_pictures_that_the_cache_has(with_control: str, tmp_path: Path, vae: Autoencoder) -> None:
    settings: dict[str, Any] = SETTINGS | {"vae": vae, "control": True, "pixels": "image, control"}
    cache_latents(with_control, str(tmp_path / "cache"), carry_image="crop", **settings)
    module = data_module(str(tmp_path / "cache"), vae=vae, batch_size=4, fresh_masks=True)
    batch = batches(module)[0]
    assert {"image", "control", "control_latents", "masked_latents"} <= batch.keys()
    assert torch.equal(batch["image"], batch["control"])
