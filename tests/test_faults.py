"""Whatever happens to the input, nothing of it disappears without a word, and nothing of it is executed."""

import io
import json
import os
import pickle
import random
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Figure, Pooling, small_samples, write_shard
from flat import cache_latents
from PIL import Image
from torch import Tensor, nn

from inpaint_data import Autoencoder, CacheError, LatentCache, UsageError

COPIES = 500
SETTINGS = {"resolution": 16, "masks": "boxes", "max_bad_fraction": 1.0}


def member_blocks(data: bytes) -> list[tuple[int, int]]:
    """[start, end) of each member of a tar, header and padding included."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.offset, m.offset_data + -(-m.size // 512) * 512) for m in tar]


def damage(data: bytes, rng: random.Random) -> bytes:
    """One of the things that happen to shards: at a seeded place, of a seeded kind."""
    members = member_blocks(data)
    changed = bytearray(data)
    kind = rng.choice(["bits", "header", "cut", "cut at member", "swap", "size", "no end", "junk", "zeros", "inserted"])
    start, end = rng.choice(members)
    if kind == "bits":
        for _ in range(rng.randint(1, 20)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "header":
        changed[start + rng.randrange(512)] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[rng.randrange(1, len(changed)) :]
    elif kind == "cut at member":
        del changed[end:]
    elif kind == "swap":
        (a, b), (c, d) = sorted(rng.sample(members, 2))
        changed = changed[:a] + changed[c:d] + changed[b:c] + changed[a:b] + changed[d:]
    elif kind == "size":  # a header that lies, its checksum made good again
        header = bytearray(changed[start : start + 512])
        header[124:136] = b"%011o\0" % rng.choice([0, 1, 511, 513, 10**6, 8**11 - 1])
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        changed[start : start + 512] = header
    elif kind == "no end":
        del changed[members[-1][1] + rng.choice([0, 512]) :]
    elif kind == "junk":
        changed += rng.randbytes(rng.randint(1, 4000))
    elif kind == "zeros":
        changed[start : start + 512 * rng.randint(1, 4)] = bytes(512)
    elif kind == "inserted":
        changed[end:end] = rng.randbytes(rng.choice([1, 100, 512, 1024]))
    return bytes(changed)


def test_five_hundred_damaged_shards_lose_nothing_in_silence(memory_path: Path, record_figure: Figure) -> None:
    """Every sample of the undamaged shard is cached, quarantined by its key, or in an extent up to the file's end."""
    samples = small_samples(6)
    whole = write_shard(memory_path / "whole.tar", samples).read_bytes()
    (memory_path / "shards").mkdir()
    rng = random.Random(0)
    for number in range(COPIES):
        (memory_path / "shards" / f"{number:04d}.tar").write_bytes(damage(whole, rng))

    cache_latents(str(memory_path / "shards"), str(memory_path / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)

    counts = {"cached": 0, "quarantined by key": 0, "in a reported extent": 0, "lost": 0}
    for number in range(COPIES):
        sidecar = json.loads((memory_path / "cache" / f"{number:04d}.json").read_bytes())
        assert all(entry["reason"] for entry in sidecar["quarantined"])
        named = {entry["key"] for entry in sidecar["quarantined"]}
        behind_damage = any(entry["end"] == sidecar["input"]["size"] for entry in sidecar["quarantined"])
        for key in samples:
            if key in sidecar["keys"]:
                counts["cached"] += 1
            elif key in named:
                counts["quarantined by key"] += 1
            else:
                counts["in a reported extent" if behind_damage else "lost"] += 1
    figures = ", ".join(f"{value} {name}" for name, value in counts.items())
    record_figure(f"{COPIES} damaged shards, {COPIES * len(samples)} samples: {figures}")
    assert counts["lost"] == 0
    assert sum(counts.values()) == COPIES * len(samples)
    assert counts["cached"] > 0.3 * COPIES * len(samples)


class Canary:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> str:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header says side x side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_nothing_in_a_shard_is_executed_leaves_the_folder_or_explodes(tmp_path: Path) -> None:
    trace, cat = tmp_path / "executed", small_samples(1)["sample_0"]["jpg"]
    poison = pickle.dumps(Canary(trace))
    poisoned_array = io.BytesIO()
    np.save(poisoned_array, np.array([Canary(trace)], dtype=object), allow_pickle=True)
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    named = tarfile.TarInfo
    shard = tar_of(
        tmp_path / "in" / "a.tar",
        (named("pickled.jpg"), cat),
        (named("pickled.pkl"), poison),
        (named("pickled.pth"), poison),
        (named("array.jpg"), cat),
        (named("array.clip.npy"), poisoned_array.getvalue()),
        (named("script.jpg"), cat),
        (named("script.json"), b'{"__class__": "os.system", "args": ["touch executed"]}'),
        (named("bomb.png"), bomb(50_000)),
        (link, b""),
        (named("../outside.jpg"), cat),
        (named("/etc/absolute.jpg"), cat),
        (named("good.jpg"), cat),
    )
    summary = cache_latents(shard, str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
    cache = LatentCache(tmp_path / "cache")
    for i in range(len(cache)):
        cache[i]
    reasons = {bad.key: bad.reason for _, bad in summary.quarantined}
    assert sorted(key for _, key in cache.places()) == ["array", "good", "pickled", "script"]
    assert "symbolic link" in reasons["link"]
    assert "'..'" in reasons["../outside"]
    assert "absolute" in reasons["/etc/absolute"]
    assert "50000" in reasons["bomb"].replace(",", "").replace(" ", "")
    assert not trace.exists()
    assert not (tmp_path / "outside.jpg").exists()
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".tar", ".json", ""}


def test_an_array_of_objects_in_a_cache_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache from a stranger: sidecar and hashes in order, and a pickle where the latents belong."""
    monkeypatch.chdir(tmp_path)
    trace = Path("executed")
    write_shard(tmp_path / "in" / "a.tar", small_samples(1))
    settings = SETTINGS | {"resolution": 64, "upscale": True, "storage": "float32"}
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **settings)
    data = io.BytesIO()
    np.save(data, np.array([Canary(trace)], dtype=object), allow_pickle=True)
    sidecar = json.loads((tmp_path / "cache" / "a.json").read_bytes())
    start, size = (sidecar["index"]["latents.npy"][column][0] for column in ("offset", "size"))
    tar = bytearray((tmp_path / "cache" / "a.tar").read_bytes())
    assert len(data.getvalue()) <= size
    tar[start : start + size] = data.getvalue().ljust(size, b"\0")
    (tmp_path / "cache" / "a.tar").write_bytes(tar)
    with pytest.raises(CacheError, match="cannot read a"):
        LatentCache(tmp_path / "cache")[0]
    assert not trace.exists()


def test_a_header_that_claims_a_gigabyte_takes_none(tmp_path: Path) -> None:
    info = tarfile.TarInfo("big.json")
    info.size = 2**30
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + b"{}".ljust(512, b"\0"))
    before = peak_memory()
    summary = cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
    assert [bad.key for _, bad in summary.quarantined] == ["big"]
    assert peak_memory() - before < 200 * 2**20


def peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("url", ["pipe:touch executed", "PIPE:touch executed", "{pipe:touch executed,b.tar}"])
def test_a_url_that_would_run_a_command_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        cache_latents(url, "cache", vae=Autoencoder(Pooling()), **SETTINGS)
    assert not (tmp_path / "executed").exists()


def test_raise_stops_at_the_first_bad_sample_and_keeps_what_was_committed(tmp_path: Path) -> None:
    write_shard(tmp_path / "in" / "a.tar", small_samples(3))
    write_shard(tmp_path / "in" / "b.tar", small_samples(1) | {"broken": {"txt": b"no picture"}})
    arguments = (str(tmp_path / "in"), str(tmp_path / "cache"))
    vae = Autoencoder(Pooling())
    with pytest.raises(CacheError, match=r"b\.tar, sample 'broken': no image"):
        cache_latents(*arguments, vae=vae, on_bad="raise", **SETTINGS)
    assert {path.name for path in (tmp_path / "cache").glob("[ab].*")} == {"a.tar", "a.json"}
    assert len(cache_latents(*arguments, vae=vae, **SETTINGS).plan.done) == 1


def test_the_number_of_retries_in_float32_is_in_the_summary(tmp_path: Path) -> None:
    class Overflows(nn.Module):
        """Too large for half precision where the picture is bright."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(60000.0))

        def encode(self, pixels: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(pixels.clamp(min=0) * self.scale * 2, 8) / self.scale

    samples = {}
    for name, colour in (("dark", 0), ("bright", 255)):
        buffer = io.BytesIO()
        Image.new("RGB", (16, 16), (colour,) * 3).save(buffer, "PNG")
        samples[name] = {"png": buffer.getvalue()}
    write_shard(tmp_path / "in" / "a.tar", samples)
    vae = Autoencoder(Overflows(), dtype=torch.float16)
    summary = cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=vae, **SETTINGS)
    assert summary.cached == 2
    assert summary.retried >= 1
    assert f"retried      {summary.retried} in float32" in summary.table()


def test_latents_too_large_for_half_precision_are_quarantined_with_the_mend(tmp_path: Path) -> None:
    class Large(nn.Module):
        def encode(self, pixels: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(pixels, 8) * 1e6

    write_shard(tmp_path / "in" / "a.tar", small_samples(2))
    summary = cache_latents(str(tmp_path / "in"), str(tmp_path / "a"), vae=Autoencoder(Large()), **SETTINGS)
    assert [bad.key for _, bad in summary.quarantined] == ["sample_0", "sample_1"]
    assert "set storage: float32" in summary.quarantined[0][1].reason
    again = cache_latents(
        str(tmp_path / "in"), str(tmp_path / "b"), vae=Autoencoder(Large()), storage="float32", **SETTINGS
    )
    assert again.cached == 2


def test_a_lost_shard_counts_as_many_samples_as_shards_usually_have(tmp_path: Path) -> None:
    for number in range(9):
        write_shard(tmp_path / "in" / f"{number}.tar", small_samples(8))
    (tmp_path / "in" / "empty.tar").write_bytes(b"")
    arguments = (str(tmp_path / "in"), str(tmp_path / "cache"))
    vae = Autoencoder(Pooling())
    with pytest.raises(CacheError, match=r"about 8 of 80 samples are quarantined, more than max_bad_fraction 0\.05"):
        cache_latents(*arguments, vae=vae, **SETTINGS | {"max_bad_fraction": 0.05})
    assert cache_latents(*arguments, vae=vae, **SETTINGS | {"max_bad_fraction": 0.1}).in_cache["samples"] == 72


def test_a_name_that_is_no_utf8_is_quarantined_under_a_name_that_json_can_hold(tmp_path: Path) -> None:
    cat = small_samples(1)["sample_0"]["jpg"]
    shard = tar_of(
        tmp_path / "in" / "a.tar",
        (tarfile.TarInfo("caf\udce9.jpg"), cat),
        (tarfile.TarInfo("good.jpg"), cat),
    )
    for _ in range(2):
        cache_latents(shard, str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
    sidecar = json.loads((tmp_path / "cache" / "a.json").read_bytes())
    assert (sidecar["keys"], [bad["key"] for bad in sidecar["quarantined"]]) == (["good"], ["caf\udce9"])


@pytest.mark.parametrize("name", ["latents.npy", "mask.pbm", "inpaint.json"])
def test_a_forged_member_is_a_cache_error_that_names_the_sample(name: str, tmp_path: Path) -> None:
    write_shard(tmp_path / "in" / "a.tar", small_samples(1))
    cache_latents(str(tmp_path / "in"), str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **SETTINGS)
    sidecar = json.loads((tmp_path / "cache" / "a.json").read_bytes())
    start, size = (sidecar["index"][name][column][0] for column in ("offset", "size"))
    for forged in (b"", b"{}", b"[" * size, b"P4\n0 0\n"):
        tar = bytearray((tmp_path / "cache" / "a.tar").read_bytes())
        tar[start : start + size] = forged[:size].ljust(size)
        (tmp_path / "cache" / "a.tar").write_bytes(tar)
        with pytest.raises(CacheError, match=r"cannot read a\.tar 'sample_0'"):
            LatentCache(tmp_path / "cache")[0]
