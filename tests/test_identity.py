"""What makes a cache another one, what only moves the last bits of it, and what does neither."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_samples, write_shard
from diffusers import AutoencoderKL, AutoencoderKLLTXVideo
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
from flat import cache_latents

from inpaint_data import Autoencoder, LatentCache, UsageError, verify_cache
from inpaint_data.latent_cache.format import CacheFile, Sidecar, fingerprint, read_cache_file

SETTINGS: dict[str, Any] = {"resolution": 32, "masks": "boxes", "upscale": True, "batch_size": 4}


def kl(**options: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        **options,
    )


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for number in range(2):
        write_shard(tmp_path / "in" / f"{number}.tar", small_samples(4, number))
    return str(tmp_path / "in")


def cache(shards: str, tmp_path: Path, vae: Autoencoder, **changed: Any) -> Any:
    return cache_latents(shards, str(tmp_path / "cache"), vae=vae, **SETTINGS | changed)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*"))}


@pytest.mark.parametrize("switch", ["tiling", "slicing", "compiled"])
def test_what_changes_how_an_autoencoder_encodes_makes_another_cache(switch: str, shards: str, tmp_path: Path) -> None:
    cache(shards, tmp_path, Autoencoder(kl()))
    module = kl()
    if switch != "compiled":
        getattr(module, f"enable_{switch}")()
    with pytest.raises(UsageError, match=rf"vae\.{switch}: the cache has false, this run true"):
        cache(shards, tmp_path, Autoencoder(module, compile=switch == "compiled"))


def test_tiles_do_change_latents() -> None:
    module = kl()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = Autoencoder(module).encode(pixels)
    module.enable_tiling()
    assert (Autoencoder(module).encode(pixels) - whole).abs().max() > 0.01


def test_a_cache_goes_on_with_another_batch_size_and_says_so(shards: str, tmp_path: Path) -> None:
    vae = Autoencoder(kl())
    cache(f"{shards}/0.tar", tmp_path, vae)
    before = bytes_of(tmp_path / "cache")
    with pytest.raises(UsageError, match=r"exact: .*batch_size: the cache has 4, this run 2 \(1 shards\)"):
        cache(shards, tmp_path, vae, batch_size=2, exact=True)
    assert bytes_of(tmp_path / "cache") == before
    summary = cache(shards, tmp_path, vae, batch_size=2)
    assert "last bits    batch_size: the cache has 4, this run 2 (1 shards)" in summary.table()
    made = [Sidecar.read(tmp_path / "cache" / f"{number}.json").made_with["batch_size"] for number in range(2)]
    assert made == [4, 2]
    assert len(LatentCache(tmp_path / "cache")) == 8
    verified = verify_cache(tmp_path / "cache", deep=True, against=shards, vae=vae)
    assert verified.ok
    assert verified.notes == ["encoded again: a batch of each of 2 shards, compared to the last bit"]
    again = cache(shards, tmp_path, vae, batch_size=2, dry_run=True)
    assert "batch_size: the cache has 4, this run 2 (1 shards)" in again.table()


def test_a_cache_goes_on_with_another_number_of_threads(shards: str, tmp_path: Path) -> None:
    vae, threads = Autoencoder(kl()), torch.get_num_threads()
    cache(f"{shards}/0.tar", tmp_path, vae)
    try:
        torch.set_num_threads(threads + 1)
        summary = cache(shards, tmp_path, vae)
    finally:
        torch.set_num_threads(threads)
    assert f"threads: the cache has {threads}, this run {threads + 1} (1 shards)" in summary.table()


def of_another_version(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let the cache be one that another version wrote."""
    old = read_cache_file(folder)
    settings = json.loads(json.dumps(old.settings_json))
    change(settings)
    for path in sorted(folder.glob("[0-9]*.json")):
        sidecar = Sidecar.read(path)
        path.write_bytes(Sidecar(**_fields(sidecar) | {"fingerprint": fingerprint(settings)}).to_bytes())
    (folder / "cache.json").write_bytes(CacheFile(fingerprint(settings), settings, None, None).to_bytes())


def _fields(sidecar: Sidecar) -> dict[str, Any]:
    return {name: getattr(sidecar, name) for name in Sidecar.__dataclass_fields__}


def without(group: str, name: str) -> Callable[[dict[str, Any]], None]:
    return lambda settings: settings[group].pop(name)


@pytest.mark.parametrize("gone", [("masks", "soft"), ("pictures", "target"), ("vae", "tiling")])
def test_a_setting_that_an_older_version_did_not_have_is_its_default(
    gone: tuple[str, str], shards: str, tmp_path: Path
) -> None:
    vae = Autoencoder(kl())
    cache(f"{shards}/0.tar", tmp_path, vae)
    of_another_version(tmp_path / "cache", without(*gone))
    before = read_cache_file(tmp_path / "cache").fingerprint
    assert cache(shards, tmp_path, vae).plan.done == [f"{shards}/0.tar"]
    opened = LatentCache(tmp_path / "cache")
    assert (opened.fingerprint, len(opened)) == (before, 8)
    if gone == ("pictures", "target"):
        with pytest.raises(UsageError, match=r"pictures\.target: the cache has false, this run true"):
            cache(shards, tmp_path, vae, target=True)


def test_a_config_field_that_a_later_diffusers_adds_does_not_make_another_cache(shards: str, tmp_path: Path) -> None:
    vae = Autoencoder(kl())
    cache(f"{shards}/0.tar", tmp_path, vae)
    of_another_version(tmp_path / "cache", lambda settings: settings["vae"]["config"].pop("mid_block_add_attention"))
    assert cache(shards, tmp_path, vae).cached == 4
    other = Autoencoder(kl(mid_block_add_attention=False))
    with pytest.raises(UsageError, match=r"vae\.config\.mid_block_add_attention: the cache has true, this run false"):
        cache(shards, tmp_path, other)


@pytest.mark.parametrize(
    "spelling", [{"resolution": [32]}, {"crop": ["center"]}, {"bucket_step": 32}, {"mask_padding": 9}]
)
def test_another_spelling_and_unused_settings_are_the_same_cache(
    spelling: dict[str, Any], shards: str, tmp_path: Path
) -> None:
    vae = Autoencoder(kl())
    cache(f"{shards}/0.tar", tmp_path, vae)
    assert cache(shards, tmp_path, vae, exact=True, **spelling).plan.done == [f"{shards}/0.tar"]


def test_statistics_that_ltx_has_as_buffers_normalise_as_its_pipeline_does() -> None:
    torch.manual_seed(0)
    module = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    module.latents_mean.copy_(torch.randn(8))
    module.latents_std.copy_(torch.rand(8) + 0.5)
    latents = torch.randn(2, 8, 1, 4, 4)
    expected = LTXPipeline._normalize_latents(latents, module.latents_mean, module.latents_std, 1.0)[:, :, 0]
    assert torch.equal(Autoencoder(module).normalise(latents[:, :, 0]), expected)
