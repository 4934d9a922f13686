"""The index beside the sidecars: a cache opens by it, and nothing that is not of the very sidecars is ever believed."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents

from inpaint_data import Autoencoder, CacheError, LatentCache, verify_cache
from inpaint_data.latent_cache.encodings import json_bytes
from inpaint_data.latent_cache.format import CacheFile, Sidecar, read_cache_file
from inpaint_data.latent_cache.indexing import index_cache
from inpaint_data.latent_cache.merged_file import INDEX_FILE, read_index
from inpaint_data.latent_cache.repair import repair_cache

SETTINGS: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True, "variants": 2}


def make(root: Path, first: int = 0, **settings: Any) -> Path:
    """A cache of three shards of four samples."""
    for number in range(3):
        write_shard(root / "in" / f"{number}.tar", small_samples(4, first + number))
    cache_latents(str(root / "in"), str(root / "cache"), vae=Autoencoder(Pooling()), **SETTINGS | settings)
    return root / "cache"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "cache"))


def same(left: Any, right: Any) -> bool:
    """Whether two batches are equal, key for key and bit for bit."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) if isinstance(left[name], torch.Tensor) else left[name] == right[name]
        for name in left
    )


def of_sidecars(cache: Path) -> LatentCache:
    """The cache, opened where nobody has made an index."""
    bare = cache.with_name(f"{cache.name}-bare")
    shutil.copytree(cache, bare, ignore=shutil.ignore_patterns(INDEX_FILE))
    return LatentCache(bare, variant=1)


def is_as_its_sidecars_say(cache: Path) -> bool:
    opened, expected = LatentCache(cache, variant=1), of_sidecars(cache)
    rows = range(len(expected))
    return (
        opened.places() == expected.places()
        and opened.quarantined == expected.quarantined
        and opened.filtered == expected.filtered
        and np.array_equal(opened.sizes, expected.sizes)
        and opened.member_bytes == expected.member_bytes
        and same(opened.batch(rows), expected.batch(rows))
    )


def parsed(cache: Path, code: str = "") -> int:
    """How many sidecars a process reads that opens the cache and reads all of it."""
    program = f"""
        import sys
        from inpaint_data.latent_cache import format
        from inpaint_data import LatentCache
        count, read = 0, format.Sidecar.read
        def counted(path):
            global count
            count += 1
            return read(path)
        format.Sidecar.read = counted
        {code}
        cache = LatentCache({str(cache)!r})
        cache.batch(range(len(cache)))
        print(count)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_the_job_writes_it_and_no_reader_parses_a_sidecar(made: Path) -> None:
    assert (made / INDEX_FILE).exists()
    assert parsed(made) == 0


def test_a_cache_without_one_is_read_once_by_its_sidecars(cache: Path) -> None:
    (cache / INDEX_FILE).unlink()
    assert parsed(cache) == 3
    assert parsed(cache) == 0
    assert is_as_its_sidecars_say(cache)


def test_a_copied_cache_is_known_byte_by_byte(cache: Path) -> None:
    for path in cache.glob("*.json"):
        os.utime(path, ns=(1, 1))
    assert parsed(cache) == 0


def put_back(cache: Path, name: str, data: bytes) -> None:
    """A file with other bytes, as long and as old as it was."""
    status = (cache / name).stat()
    (cache / name).write_bytes(data)
    os.utime(cache / name, ns=(status.st_atime_ns, status.st_mtime_ns))


def signed(cache: Path, name: str, **fields: Any) -> None:
    """Change fields of a sidecar, with its hash right and its time as it was; `cache.json` counts it in."""
    content = json.loads((cache / name).read_bytes()) | fields
    content.pop("sha256")
    put_back(cache, name, json_bytes(content | {"sha256": sha256(json_bytes(content)).hexdigest()}))


def other_shard(cache: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", first=50)
    for name in ("1.tar", "1.json", "cache.json"):
        shutil.copy2(other / name, cache / name)
    for number in (0, 2):
        for name in (f"{number}.tar", f"{number}.json"):
            shutil.copy2(other / name, cache / name)


def unfinished(cache: Path) -> None:
    """`cache.json` as it is while a job is under way."""
    whole = read_cache_file(cache)
    (cache / "cache.json").write_bytes(CacheFile(whole.fingerprint, whole.settings_json, None, None).to_bytes())


def removed_shard(cache: Path, tmp_path: Path) -> None:  # noqa: ARG001
    (cache / "2.json").unlink()
    (cache / "2.tar").unlink()
    unfinished(cache)


def added_shard(cache: Path, tmp_path: Path) -> None:
    index = (cache / INDEX_FILE).read_bytes()
    for number in range(4):
        write_shard(tmp_path / "more" / f"{number}.tar", small_samples(4, number))
    cache_latents(str(tmp_path / "more"), str(cache), vae=Autoencoder(Pooling()), **SETTINGS)
    (cache / INDEX_FILE).write_bytes(index)


def of_another_cache(cache: Path, tmp_path: Path) -> None:
    shutil.copy(make(tmp_path / "other", first=50) / INDEX_FILE, cache / INDEX_FILE)


def of_other_settings(cache: Path, tmp_path: Path) -> None:
    shutil.copy(make(tmp_path / "other", seed=9) / INDEX_FILE, cache / INDEX_FILE)


def cut(cache: Path, tmp_path: Path) -> None:  # noqa: ARG001
    data = (cache / INDEX_FILE).read_bytes()
    (cache / INDEX_FILE).write_bytes(data[: len(data) // 2])


def emptied(cache: Path, tmp_path: Path) -> None:  # noqa: ARG001
    (cache / INDEX_FILE).write_bytes(b"")


def a_folder(cache: Path, tmp_path: Path) -> None:  # noqa: ARG001
    (cache / INDEX_FILE).unlink()
    (cache / INDEX_FILE).mkdir()


CHANGES = (other_shard, removed_shard, added_shard, of_another_cache, of_other_settings, cut, emptied, a_folder)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_one_that_is_not_of_the_sidecars_is_never_believed(
    change: Callable[[Path, Path], None], cache: Path, tmp_path: Path
) -> None:
    assert len(LatentCache(cache)) == 12
    change(cache, tmp_path)
    assert is_as_its_sidecars_say(cache)
    assert verify_cache(cache).ok


def test_a_sidecar_of_the_same_length_and_time_is_noticed(cache: Path) -> None:
    assert len(LatentCache(cache)) == 12
    keys = json.loads((cache / "1.json").read_bytes())["keys"]
    signed(cache, "1.json", keys=[key.replace("sample", "SAMPLE") for key in keys])
    with pytest.raises(CacheError, match="was written for other shards"):
        LatentCache(cache)
    unfinished(cache)
    assert ("1.tar", "SAMPLE_0") in LatentCache(cache).places()


@pytest.mark.parametrize("at", [1 / 50, 1 / 4, 1 / 2, 3 / 4, 49 / 50])
def test_a_changed_byte_anywhere_changes_no_batch(at: float, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = LatentCache(cache, variant=1).batch(range(12))
    data = bytearray((cache / INDEX_FILE).read_bytes())
    for place in range(int(at * len(data)), int(at * len(data)) + 64):
        data[place] ^= 0x55
    (cache / INDEX_FILE).write_bytes(data)
    assert same(LatentCache(cache, variant=1).batch(range(12)), expected)
    assert same(LatentCache(cache, variant=1).batch(range(12)), expected)
    assert "damaged" not in caplog.text or caplog.text.count("it is made anew") == 1
    assert read_index(cache / INDEX_FILE) is not None


def test_a_folder_that_cannot_be_written_to_is_no_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / INDEX_FILE).unlink()
    cache.chmod(0o555)
    try:
        if os.access(cache, os.W_OK):  # root may write anywhere; a name that is too long for everybody does not
            monkeypatch.setattr("inpaint_data.latent_cache.merged_file.INDEX_FILE", "x" * 300)
        assert len(LatentCache(cache).batch(range(12))["__key__"]) == 12
    finally:
        cache.chmod(0o755)
    assert not (cache / INDEX_FILE).exists()


def opened(cache: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    batch = LatentCache(cache, variant=1).batch(range(12))
    results.put((batch["__key__"], batch["latents"].sum().item()))


def test_two_processes_that_make_it_at_once_do_not_disturb_each_other(cache: Path) -> None:
    expected = LatentCache(cache, variant=1).batch(range(12))
    (cache / INDEX_FILE).unlink()
    context = get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=opened, args=(str(cache), barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [(expected["__key__"], expected["latents"].sum().item())] * 2
    assert {path.name for path in cache.iterdir() if path.name.endswith(".tmp")} == set()
    assert parsed(cache) == 0


def test_an_opened_cache_stays_what_it_was_and_goes_to_other_processes(cache: Path, tmp_path: Path) -> None:
    before = LatentCache(cache, variant=1)
    expected = before.batch(range(12))
    assert same(pickle.loads(pickle.dumps(before)).batch(range(12)), expected)
    (cache / INDEX_FILE).unlink()
    assert same(before.batch(range(12)), expected), "it is mapped still"
    of_another_cache(cache, tmp_path)
    with pytest.raises(CacheError, match=r"\.index: the cache was changed after it was opened"):
        pickle.loads(pickle.dumps(before))


def test_unfinished_caches_have_none_and_are_read(cache: Path) -> None:
    (cache / INDEX_FILE).unlink()
    removed_shard(cache, cache)
    assert len(LatentCache(cache)) == 8
    assert not (cache / INDEX_FILE).exists()


def test_index_and_repair_write_it(cache: Path) -> None:
    (cache / INDEX_FILE).unlink()
    assert repair_cache(cache) == []
    assert parsed(cache) == 0
    for path in [*cache.glob("?.json"), cache / INDEX_FILE]:
        path.unlink()
    assert index_cache(cache) == ["0.tar", "1.tar", "2.tar"]
    assert parsed(cache) == 0
    assert verify_cache(cache).ok


def test_sidecars_of_before_that_have_no_columns_of_records_give_the_same_batches(cache: Path) -> None:
    expected = LatentCache(cache, variant=1).batch(range(12))
    for name in ("0.json", "1.json"):  # the third shard was made anew
        content = json.loads((cache / name).read_bytes())
        del content["records"], content["sha256"]
        (cache / name).write_bytes(json_bytes(content | {"sha256": sha256(json_bytes(content)).hexdigest()}))
        assert Sidecar.read(cache / name).records is None
    unfinished(cache)
    for rows in (range(12), range(8, 12), [11, 0, 5]):
        whole, part = LatentCache(cache, variant=1).batch(range(12)), LatentCache(cache, variant=1).batch(rows)
        assert same(whole, expected)
        assert part["caption"] == [expected["caption"][row] for row in rows]
        assert torch.equal(part["mask"], expected["mask"][list(rows)])


def put(cache: Path, url: str) -> str:
    files = fsspec.filesystem("s3")
    for path in cache.iterdir():
        files.put_file(str(path), f"{url.removeprefix('s3://')}/{path.name}")
    return url


def test_a_remote_cache_is_opened_by_its_index_alone(s3: str, cache: Path, tmp_path: Path) -> None:
    url, mirror = put(cache, f"{s3}/{tmp_path.name}"), str(tmp_path / "mirror")
    for number in range(3):
        fsspec.filesystem("s3").rm_file(f"{url}/{number}.json".removeprefix("s3://"))
    expected = LatentCache(cache, variant=1).batch(range(12))
    for _ in range(2):  # fetched, and from the mirror
        remote = LatentCache(url, variant=1, mirror=mirror)
        for _ in range(2):
            assert same(remote.batch(range(12)), expected)
    assert same(pickle.loads(pickle.dumps(remote)).batch(range(12)), expected)


@pytest.mark.parametrize("change", [None, of_another_cache, cut, emptied])
def test_a_remote_index_that_is_not_of_its_cache_is_never_believed(
    change: Callable[[Path, Path], None] | None, s3: str, cache: Path, tmp_path: Path
) -> None:
    expected = LatentCache(cache, variant=1).batch(range(12))
    if change is None:
        (cache / INDEX_FILE).unlink()
    else:
        change(cache, tmp_path)
    remote = LatentCache(put(cache, f"{s3}/{tmp_path.name}"), variant=1, mirror=str(tmp_path / "mirror"))
    assert same(remote.batch(range(12)), expected)


def test_a_remote_index_with_damaged_rows_changes_no_batch(s3: str, cache: Path, tmp_path: Path) -> None:
    expected = LatentCache(cache, variant=1).batch(range(12))
    data = bytearray((cache / INDEX_FILE).read_bytes())
    data[-40:] = bytes(40)
    (cache / INDEX_FILE).write_bytes(data)
    remote = LatentCache(put(cache, f"{s3}/{tmp_path.name}"), variant=1, mirror=str(tmp_path / "mirror"))
    assert same(remote.batch(range(12)), expected)


def test_a_cache_that_was_made_anew_in_its_store_is_read_as_it_is_now(s3: str, cache: Path, tmp_path: Path) -> None:
    url, mirror = put(cache, f"{s3}/{tmp_path.name}"), str(tmp_path / "mirror")
    assert len(LatentCache(url, mirror=mirror)) == 12
    other = make(tmp_path / "other", first=50)
    put(other, url)
    assert same(
        LatentCache(url, variant=1, mirror=mirror).batch(range(12)), LatentCache(other, variant=1).batch(range(12))
    )


def test_a_job_that_writes_to_a_store_puts_it_there(s3: str, tmp_path: Path) -> None:
    for number in range(2):
        write_shard(tmp_path / "in" / f"{number}.tar", small_samples(4, number))
    url = f"{s3}/{tmp_path.name}"
    cache_latents(str(tmp_path / "in"), url, vae=Autoencoder(Pooling()), **SETTINGS)
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    assert f"{url}/{INDEX_FILE}".removeprefix("s3://") in files.find(url)
    assert verify_cache(url).ok
    assert len(LatentCache(url, mirror=str(tmp_path / "mirror")).batch(range(8))["__key__"]) == 8
