"""Latents in fewer bytes: what each storage keeps, to which bound, and what is refused afterwards."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from conftest import DEMO_VAE, Pooling, run
from flat import cache_latents, data_module
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inpaint_data import Autoencoder, LatentCache, UsageError, index_cache, verify_cache
from inpaint_data.encoding.device import batch_size_for, computes_in_bfloat16
from inpaint_data.latent_cache.format import Sidecar, committed
from inpaint_data.latent_cache.storage import STORED, from_storage, scales_of, to_storage
from inpaint_data.pipeline import bucketed, cached

KEYS = ("latents", "masked_latents")
Make = Callable[..., LatentCache]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-6, 1.0, 3e4]), st.booleans())
def test_what_is_stored_is_within_the_bound_of_its_type(seed: int, scale: float, has_zeros: bool) -> None:
    array = (np.random.default_rng(seed).standard_normal((3, 4, 5)) * scale).astype(np.float32)
    array[1] *= 0 if has_zeros else 1e-3
    back = {name: from_storage(to_storage(array, name), scales_of(array)) for name in STORED}
    assert np.array_equal(back["float32"], array)
    assert torch.equal(torch.from_numpy(back["bfloat16"].copy()), torch.from_numpy(array).bfloat16().float())
    assert np.array_equal(back["float16"].astype(np.float32), array.astype(np.float16).astype(np.float32))
    steps = np.abs(array).max((1, 2), keepdims=True) / 127
    assert (np.abs(back["int8"] - array) <= 0.5001 * steps).all()


@pytest.fixture
def make(shards: str, tmp_path: Path) -> Make:
    def cache(name: str = "cache", **given: Any) -> LatentCache:
        folder = str(tmp_path / name)
        common = {"resolution": 64, "masks": "mixture", "variants": 2, "device": "cpu"}
        cache_latents(shards, folder, **common | given)
        assert verify_cache(folder, deep=True, against=shards).problems == []
        return LatentCache(folder, variant=1)

    return cache


def latents_of(cache: LatentCache, key: str) -> Tensor:
    batch: Any = cache.batch(range(len(cache)))
    return batch[key]


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "float16"])
def test_a_cache_gives_what_its_storage_keeps_of_float32(storage: Any, make: Make) -> None:
    whole, small = make("whole", storage="float32"), make("small", storage=storage)
    for posterior in ("mode", "moments"):
        whole.posterior = small.posterior = posterior
        for key in KEYS:
            arrays = latents_of(whole, key).numpy()
            if posterior == "mode":
                whole.posterior = "moments"
                arrays = latents_of(whole, key).numpy()
                whole.posterior = "mode"
            kept = np.stack([from_storage(to_storage(each, storage), scales_of(each)) for each in arrays])
            expected = torch.from_numpy(kept.astype(np.float32))
            assert torch.equal(latents_of(small, key), expected if posterior == "moments" else expected.chunk(2, 1)[0])
    assert torch.equal(latents_of(whole, "mask"), latents_of(small, "mask"))


def test_a_mean_is_the_mode_and_no_more_is_asked_of_it(make: Make, tmp_path: Path) -> None:
    moments, means = make("moments"), make("means", keep="mean")
    assert means.settings.means == ["latents", "masked_latents"]
    for key in KEYS:
        assert torch.equal(latents_of(means, key), latents_of(moments, key))
    assert means.member_bytes["latents.npy"] < 0.6 * moments.member_bytes["latents.npy"]
    for posterior in ("sample", "moments"):
        with pytest.raises(UsageError, match=r"needs the log-variance of latents.*; give posterior mode, or make it"):
            LatentCache(str(tmp_path / "means"), posterior=posterior)
        with pytest.raises(UsageError, match="needs the log-variance"):
            list(wds.DataPipeline(_samples(tmp_path / "means"), cached(posterior=posterior), bucketed(4)))
    with pytest.raises(UsageError, match="needs the log-variance of latents"):
        data_module(str(tmp_path / "means"), recipe="sd3-inpaint").train_dataloader()


def test_only_masked_latents_may_be_means(make: Make, tmp_path: Path) -> None:
    moments, mixed = make("moments"), make("mixed", keep={"masked_latents": "mean"})
    assert torch.equal(latents_of(mixed, "masked_latents"), latents_of(moments, "masked_latents"))
    moments.posterior = mixed.posterior = "sample"
    assert torch.equal(latents_of(mixed, "latents"), latents_of(moments, "latents"))
    moments.posterior = "mode"
    assert torch.equal(latents_of(mixed, "masked_latents"), latents_of(moments, "masked_latents"))
    with pytest.raises(UsageError, match="needs the log-variance of masked_latents"):
        LatentCache(str(tmp_path / "mixed"), posterior="moments")


def _samples(folder: Path) -> Any:
    return wds.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_numpy_alone_reads_it_as_the_docs_say(storage: str, make: Make, tmp_path: Path) -> None:
    cache = make(storage=storage)
    cache.posterior = "moments"
    for row, sample in enumerate(_samples(tmp_path / "cache")):
        array = np.load(io.BytesIO(sample["latents.npy"]))
        if storage == "bfloat16":
            values = (array.astype("u4") << 16).view("f4")
        else:
            values = array * np.load(io.BytesIO(sample["latents.scale.npy"]))
        assert np.array_equal(values, latents_of(cache, "latents")[row].numpy())


def test_the_stage_gives_what_the_cache_gives(make: Make, tmp_path: Path) -> None:
    cache = make(storage="int8", keep={"masked_latents": "mean"})
    stages = (cached(variant=1, posterior="sample", seed=0), bucketed(12))
    cache.posterior = "sample"
    batches = list(wds.DataPipeline(_samples(tmp_path / "cache"), *stages))
    for key in KEYS:
        assert torch.equal(torch.cat([batch[key] for batch in batches]), latents_of(cache, key))


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_sidecars_are_made_again_and_damage_is_named(storage: str, make: Make, tmp_path: Path) -> None:
    make(storage=storage, keep={"masked_latents": "mean"})
    folder = tmp_path / "cache"
    for path in folder.glob("*.json"):
        path.unlink()
    index_cache(str(folder), vae="demo")
    assert verify_cache(str(folder)).problems == []
    content = json.loads((folder / "cache.json").read_bytes())["settings"]
    assert (content["storage"], content["means"]) == (storage, ["masked_latents"])


def test_a_cache_goes_on_with_its_storage_alone(make: Make) -> None:
    make(storage="int8", keep="mean")
    with pytest.raises(UsageError, match=r"storage: the cache has .int8., this run .bfloat16."):
        make(storage="bfloat16", keep="mean")
    with pytest.raises(UsageError, match=r"means: the cache has"):
        make(storage="int8")
    make(storage="int8", keep={"latents": "mean", "masked_latents": "mean"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": "modes"}, r"keep: 'modes' is unknown; choose from moments, mean, or a mapping"),
        ({"keep": {"mask_latents": "mean"}}, r"keep: there is no 'mask_latents'; .* did you mean masked_latents\?"),
        ({"storage": "int4"}, r"storage: 'int4' is unknown; choose from float16, bfloat16, float32, int8"),
    ],
)
def test_unknown_ways_to_keep_are_refused(given: dict[str, Any], message: str, shards: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        cache_latents(shards, str(tmp_path / "x"), resolution=64, masks="boxes", **given)


def test_a_dry_run_says_what_each_storage_takes_and_costs(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], record_figure: Callable[[str], None]
) -> None:
    words = ["cache", "--shards", shards, "--out", str(tmp_path / "x"), "--vae", "demo", "--resolution", "128"]
    code, out, _ = run(capsys, *words, "--masks", "boxes", "--dry_run")
    assert code == 0
    (line,) = [line for line in out.splitlines() if "a sample " in line]
    sizes = {
        part.split()[0]: part.split()[1:] for part in line.replace("a sample", "").split(", decoded")[0].split(";")
    }
    bytes_of = {name: float(given[0]) for name, given in sizes.items()}
    decibels = {name: float(given[2]) for name, given in sizes.items() if len(given) > 2}
    assert bytes_of["int8"] < bytes_of["float16"] == bytes_of["bfloat16"] < bytes_of["float32"]
    assert 40 < decibels["int8"] < decibels["bfloat16"] < decibels["float16"]
    assert "drawn from the posterior" in out
    record_figure(f"stored latents, decoded, against float32: {line.split('a sample')[1].strip()}")
    code, out, _ = run(capsys, *words[:-1], "64", "--masks", "boxes", "--storage", "int8")
    assert code == 0
    code, out, _ = run(capsys, "stats", str(tmp_path / "x"))
    assert "a sample, " in out
    assert "latents.scale.npy 256" in out


def test_an_autoencoder_without_a_posterior_has_no_means(shards: str, tmp_path: Path) -> None:
    vae = Autoencoder(Pooling())
    cache_latents(shards, str(tmp_path / "x"), vae=vae, resolution=64, masks="boxes", keep="mean", storage="int8")
    cache = LatentCache(str(tmp_path / "x"))
    assert cache.settings.means == []
    assert latents_of(cache, "latents").shape[1] == 3


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_what_the_hole_hides_is_cached_where_the_recipe_reads_it(storage: Any, shards: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"resolution": 64, "masks": "mixture", "recipe": "wan-vace"}
    cache_latents(shards, str(tmp_path / "c"), variants=2, device="cpu", storage=storage, **common)
    assert verify_cache(str(tmp_path / "c"), deep=True, against=shards).problems == []
    cache = LatentCache(str(tmp_path / "c"), variant=0)
    assert cache.settings.hole_latents
    live = data_module(shards, batch_size=12, vae="demo", **common)
    live.setup("fit")
    (batch,) = live.train_dataloader()
    encoded: Any = live.on_after_batch_transfer(batch, 0)
    rows = {key: row for row, key in enumerate(encoded["__key__"])}
    for row in range(len(cache)):
        own: Any = cache[row]
        theirs = encoded["hole_latents"][rows[own["__key__"][0]]]
        bound = 2e-3 if storage == "float32" else 0.1
        assert (own["hole_latents"][0] - theirs).abs().max() < bound
    module = data_module(str(tmp_path / "c"), batch_size=4, recipe="wan-vace")
    module.setup("fit")
    assert module.recipe(next(iter(module.train_dataloader()))).shape[1] == 96
    cache_latents(shards, str(tmp_path / "without"), vae="demo", resolution=64, masks="mixture", device="cpu")
    with pytest.raises(UsageError, match="recipe wan-vace reads hole_latents, which this cache was made without"):
        data_module(str(tmp_path / "without"), recipe="wan-vace").train_dataloader()


def test_what_the_recipe_could_not_read_is_refused_by_the_job(shards: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"resolution": 64, "masks": "boxes", "vae": "demo"}
    with pytest.raises(UsageError, match="keep: mean, but recipe sd3-inpaint draws latents"):
        cache_latents(shards, str(tmp_path / "x"), recipe="sd3-inpaint", keep="mean", **common)
    cache_latents(shards, str(tmp_path / "x"), recipe="sd3-inpaint", keep={"masked_latents": "mean"}, **common)
    with pytest.raises(UsageError, match="references: 2, but recipe flux-kontext-reference-inpaint reads one"):
        cache_latents(shards, str(tmp_path / "y"), recipe="flux-kontext-reference-inpaint", references=2, **common)


def test_the_layout_of_pixels_may_be_that_of_pipelines_given_pil_pictures(shards: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"resolution": 64, "masks": "boxes", "vae": "demo", "storage": "float32"}
    cache_latents(shards, str(tmp_path / "last"), channels_last=True, **common)
    cache_latents(shards, str(tmp_path / "first"), **common)
    last, first = (LatentCache(str(tmp_path / name)) for name in ("last", "first"))
    assert (last.settings.vae.channels_last, first.settings.vae.channels_last) == (True, False)
    assert last.fingerprint != first.fingerprint
    assert (latents_of(last, "latents") - latents_of(first, "latents")).abs().max() < 1e-3


def test_auto_is_what_the_device_computes_in_and_as_many_as_suit_it(
    shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"resolution": 64, "masks": "mixture", "device": "cpu", "vae": str(DEMO_VAE)}
    cache_latents(shards, str(tmp_path / "cache"), dtype="auto", batch_size="auto", **settings)
    record = json.loads((tmp_path / "cache" / "cache.json").read_bytes())["settings"]["vae"]
    name = "bfloat16" if computes_in_bfloat16(torch.device("cpu")) else "float32"
    assert record["dtype"] == name
    assert f"dtype: auto is {name} on cpu" in caplog.text
    made_with = [sidecar.made_with for sidecar in map(Sidecar.read, committed(tmp_path / "cache"))]
    assert {made["batch_size"] for made in made_with} == {2}
    gpu = torch.device("cuda")
    assert [batch_size_for(gpu, side**2) for side in (256, 512, 768, 1024, 2048, 4096)] == [64, 16, 4, 4, 1, 1]


def test_a_dry_run_says_what_half_precision_costs(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--resolution", "64", "--masks", "mixture", "--device", "cpu", "--vae", "demo", "--dry_run"]
    for dtype, is_told in (("bfloat16", True), ("float32", False)):
        code, out, _ = run(
            capsys, "cache", "--shards", shards, "--out", str(tmp_path / "cache"), "--dtype", dtype, *flags
        )
        assert code == 0
        [decibels] = re.findall(r"encoded +in bfloat16 (\d+) dB, decoded, against encoding in float32", out) or ["0"]
        assert (40 < int(decibels) < 90) == is_told


@pytest.mark.parametrize(
    ("encode", "named"),
    [
        ({"compile": True}, "compile: the cache has false"),
        ({"channels_last": True}, "channels_last: the cache has false"),
        ({"dtype": "bfloat16"}, 'dtype: the cache has "float32", this run "bfloat16"'),
        ({"dtype": "bfloat16", "vae": "demo"}, 'dtype: the cache has "float32", this run "bfloat16"'),
    ],
)
def test_training_asks_for_what_the_cache_was_encoded_with(
    encode: dict[str, Any], named: str, make: Make, tmp_path: Path
) -> None:
    make()
    module = data_module(str(tmp_path / "cache"), batch_size=2, **encode)
    module.setup("fit")
    with pytest.raises(UsageError) as refused:
        module.train_dataloader()
    assert named in str(refused.value)
    assert "weights_sha256" not in str(refused.value)
