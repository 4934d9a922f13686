"""Training from a damaged, changed or forged cache: an error names the sample, other tensors never come out."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents, data_module
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.plugins import HalfPrecision

from inpaint_data import Autoencoder, CacheError, LatentCache, UsageError, verify_cache
from inpaint_data.latent_cache.encodings import json_bytes
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Sidecar, read_cache_file, write_cache_file

SETTINGS: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True, "variants": 2}


def make(folder: Path, seed: int = 0) -> Path:
    """A cache of two shards with four samples each."""
    vae = Autoencoder(Pooling())
    for number in range(2):
        samples = small_samples(4, seed + number)
        write_shard(
            folder / "in" / f"{number}.tar", {key: {**each, "big.bin": b"x" * 999} for key, each in samples.items()}
        )
    cache_latents(str(folder / "in"), str(folder / "cache"), vae=vae, **SETTINGS)
    return folder / "cache"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return make(tmp_path)


def flip(cache: Path, member: str, row: int = 1) -> None:
    """Change one bit in the middle of a member."""
    place = Sidecar.read(cache / "0.json").index.of_row(row)[member]
    with (cache / "0.tar").open("r+b") as file:
        file.seek(place.offset + place.size - 2)
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("member", ["latents.npy", "masked_latents.npy", "mask.pbm", "inpaint.json", "txt", "big.bin"])
def test_a_changed_bit_in_any_member_is_named_when_it_is_read(member: str, cache: Path) -> None:
    flip(cache, member)
    opened = LatentCache(cache)
    assert opened[0]["__key__"] == ["sample_0"]
    with pytest.raises(CacheError, match=rf"cannot read 0\.tar 'sample_1' .*{member} is not what was written"):
        opened.batch([0, 1])
    if member == "big.bin":
        assert LatentCache(cache, carried=["txt"])[1]["__key__"] == ["sample_1"]


def test_when_bytes_are_checked_is_a_choice(cache: Path) -> None:
    first, always, never = (LatentCache(cache, check=check) for check in ("first", "always", "never"))
    before = [opened[1]["masked_latents"] for opened in (first, always, never)]
    flip(cache, "latents.npy")
    for opened in (first, never):
        assert torch.equal(opened[1]["masked_latents"], before[0])
    with pytest.raises(CacheError, match=r"latents\.npy is not what was written"):
        always[1]
    with pytest.raises(UsageError, match="check: 'sometimes' is unknown; choose from first, always, never"):
        LatentCache(cache, check="sometimes")  # type: ignore[arg-type]
    data = data_module(str(cache), batch_size=8, check="always")
    data.setup("fit")
    with pytest.raises(CacheError, match=r"latents\.npy is not what was written"):
        list(data.train_dataloader())


def test_a_variant_alone_is_read_as_it_is_among_all(cache: Path) -> None:
    for variant in range(2):
        opened = LatentCache(cache, variant=variant)
        whole, part = opened[1], opened[1]  # the second time the array of that variant alone is read
        assert torch.equal(whole["masked_latents"], part["masked_latents"])


def test_a_shard_of_another_cache_of_these_settings_is_refused(cache: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", seed=7)
    for name in ("1.tar", "1.json"):
        shutil.copy(other / name, cache / name)
    with pytest.raises(CacheError, match=r"cache\.json was written for other shards than are here"):
        LatentCache(cache)
    assert "cache.json: was written for other shards" in str(verify_cache(cache).problems[0])
    summary = cache_latents(str(tmp_path / "in"), str(cache), vae=Autoencoder(Pooling()), **SETTINGS)
    assert summary.plan.stale == [str(tmp_path / "in" / "1.tar")]
    assert verify_cache(cache, against=str(tmp_path / "in")).ok


def test_a_shard_that_is_made_again_meanwhile_never_gives_its_tensors_under_an_old_key(
    cache: Path, tmp_path: Path
) -> None:
    opened, before = LatentCache(cache, variant=0), LatentCache(cache, variant=0).batch(range(4))
    assert torch.equal(opened[0]["latents"], before["latents"][:1]), "its first shard is open now, its second is not"
    for number in range(2):
        write_shard(tmp_path / "in" / f"{number}.tar", small_samples(4, 50 + number))
    cache_latents(str(tmp_path / "in"), str(cache), vae=Autoencoder(Pooling()), **SETTINGS)
    assert torch.equal(opened.batch(range(4))["latents"], before["latents"]), "what is open stays as it was"
    with pytest.raises(CacheError, match=r"cannot read 1\.tar"):
        opened.batch(range(4, 8))


def test_a_tar_that_is_cut_while_it_is_open_is_an_error_and_not_a_signal(cache: Path) -> None:
    opened = LatentCache(cache)
    assert opened[0]["__key__"] == ["sample_0"]
    os.truncate(cache / "0.tar", 700)
    with pytest.raises(CacheError, match=r"cannot read 0\.tar 'sample_3' .*it was cut while it was read"):
        opened[3]


MANY = """
    import resource, sys
    sys.path.insert(0, {tests!r})
    from inpaint_data import LatentCache
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    cache = LatentCache({cache!r}, variant=0)
    for _ in range(2):
        assert [cache[row]["__shard__"][0] for row in range(len(cache))] == [f"{{row:03d}}.tar" for row in range(200)]
    print("read")
"""


def test_more_shards_than_a_process_may_open_are_read(tmp_path: Path) -> None:
    for number in range(200):
        write_shard(tmp_path / "in" / f"{number:03d}.tar", small_samples(1))
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
    script = textwrap.dedent(MANY.format(tests=str(Path(__file__).parent), cache=str(tmp_path / "cache")))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "read\n", done.stderr[-2000:]


def forged(cache: Path, **fields: Any) -> None:
    """Change fields of a sidecar, with a right hash over them."""
    content = json.loads((cache / "0.json").read_bytes()) | fields
    content.pop("sha256")
    signed = content | {"sha256": hashlib.sha256(json_bytes(content)).hexdigest()}
    (cache / "0.json").write_bytes(json_bytes(signed))
    write_cache_file(CacheFolder(cache), read_cache_file(cache).settings_json, None)


@pytest.mark.parametrize("sha256", ["/root/.ssh/authorized_keys", "../../x", "A" * 64, "0" * 63, "", 5])
def test_a_hash_that_could_name_a_file_elsewhere_is_refused(sha256: Any, cache: Path) -> None:
    size = (cache / "0.tar").stat().st_size
    forged(cache, output={"size": size, "sha256": sha256})
    with pytest.raises(CacheError, match=r"0\.json: not a sidecar .*output has no size and sha256"):
        LatentCache(cache)


@pytest.mark.parametrize("name", ["cache.json", "0.json"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": 1e999}', '{"format": 1, "x": ' + "9" * 5000 + "}", "\ud800"]
)
def test_json_that_no_parser_should_be_fed_is_an_error_of_that_file(name: str, text: str, cache: Path) -> None:
    (cache / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CacheError, match=rf"{name}: "):
        LatentCache(cache)
    assert any(problem.file == name for problem in verify_cache(cache).problems)


def test_numbers_that_no_array_takes_are_refused(cache: Path) -> None:
    columns = json.loads((cache / "0.json").read_bytes())["index"]
    latents = columns["latents.npy"] | {"offset": [2**63, 2**70, -5, 0]}
    forged(cache, index=columns | {"latents.npy": latents})
    with pytest.raises(CacheError, match=r"0\.json: not a sidecar .*index says"):
        LatentCache(cache)


def test_no_loop_walks_through_the_bytes_that_a_batch_carries(cache: Path) -> None:
    batch = LatentCache(cache).batch([0, 1])
    assert not isinstance(batch["carried"], Sequence)
    for moved in (move_data_to_device(batch, "cpu"), HalfPrecision("bf16-true").convert_input(batch)):
        assert moved["carried"] is batch["carried"]
    assert batch["carried"][1]["big.bin"] == b"x" * 999


@pytest.mark.parametrize(
    "changes", [{"totals": {}}, {"totals": {"samples": "8"}}, {"totals": 5}, {"shards_sha256": None}, {"settings": []}]
)
def test_a_cache_file_whose_fields_are_not_those_of_one_is_damaged(changes: dict[str, Any], cache: Path) -> None:
    content = json.loads((cache / "cache.json").read_bytes()) | changes
    (cache / "cache.json").write_text(json.dumps(content))
    with pytest.raises(CacheError, match=r"cache\.json: damaged"):
        LatentCache(cache)
