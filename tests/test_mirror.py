"""Copies of remote shards: one for a machine, never beyond the limit, never taken from whoever reads them."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Pooling, small_samples, write_shard
from flat import cache_latents, data_module

from inpaint_data import Autoencoder, LatentCache, ShardError, UsageError
from inpaint_data.pipeline.image_indexing import index_shards as index_images
from inpaint_data.shards import mirror as mirror_module
from inpaint_data.shards.mirror import mirror_in
from inpaint_data.shards.streams import read_range

SMALL: dict[str, Any] = {"resolution": 16, "masks": "boxes", "upscale": True}


def remote_shards(folder: Path, count: int = 4, first: int = 0) -> tuple[str, int]:
    """Their folder as a URL, and the size of one."""
    for number in range(first, first + count):
        samples = {f"{number}_{key}": members for key, members in small_samples(4, number).items()}
        path = write_shard(folder / f"{number}.tar", samples)
    return f"file://{folder}", path.stat().st_size


@pytest.mark.parametrize("room", [0, 1, 2, 4])
def test_remote_images_train_whatever_room_there_is(room: int, tmp_path: Path) -> None:
    url, size = remote_shards(tmp_path / "in")
    index_images(f"{url}/*.tar")
    mirror = tmp_path / "mirror"
    data = data_module(
        url, vae=Autoencoder(Pooling()), batch_size=2, mirror=str(mirror), mirror_bytes=room * size + size // 2, **SMALL
    )
    data.setup("fit")
    for _ in range(2):
        keys = [key for batch in data.train_dataloader() for key in batch["__key__"]]
        assert len(keys) == len(set(keys)) == 16
    for _ in range(2000):  # a thread makes them
        kept = sum(path.stat().st_size for path in mirror.glob("*.copy"))
        if kept == room * size:
            break
        time.sleep(0.01)
    assert kept == room * size


def test_remote_images_without_an_index_are_copied_or_say_what_is_missing(tmp_path: Path) -> None:
    url, size = remote_shards(tmp_path / "in")
    mirror = tmp_path / "mirror"
    given = {"vae": Autoencoder(Pooling()), "batch_size": 2, "mirror": str(mirror), **SMALL}
    data = data_module(url, mirror_bytes=4 * size, **given)
    data.setup("fit")
    assert sum(len(batch["__key__"]) for batch in data.train_dataloader()) == 16
    assert len(list(mirror.glob("*.copy"))) == 4
    for less in ({"mirror_bytes": 4 * size - 1}, {"mirror": "none"}):
        module = data_module(url, **given | less)
        with pytest.raises(UsageError, match=r"4 remote shards.*`inpaint-data index`, or set .*epoch_batches: N"):
            module.train_dataloader()


def test_a_folder_has_one_mirror_and_two_caches_keep_their_copies(tmp_path: Path) -> None:
    assert mirror_in(tmp_path / "m") is mirror_in(str(tmp_path / "m"))
    sizes = {}
    for first, name in enumerate(("train", "val")):
        remote_shards(tmp_path / name, 2, 2 * first)
        cache_latents(str(tmp_path / name), str(tmp_path / f"c_{name}"), vae=Autoencoder(Pooling()), **SMALL)
        sizes[name] = sum(path.stat().st_size for path in (tmp_path / f"c_{name}").glob("*.tar"))
    room = sizes["train"] + sizes["val"] * 3 // 4  # less than both need
    caches = {
        name: LatentCache(f"file://{tmp_path}/c_{name}", mirror=str(tmp_path / "m"), mirror_bytes=room)
        for name in sizes
    }
    for _ in range(2):
        for cache in caches.values():
            assert len([cache[index] for index in range(len(cache))]) == 8
    copies = list((tmp_path / "m").glob("*.copy"))
    assert sum(path.stat().st_size for path in copies) <= room
    assert len(copies) == 3  # those of training, and one more; the last shard is read piece by piece


def copy_counted(folder: str, url: str, size: int, queue: Any) -> None:
    opened = []
    original = mirror_module.open_stream
    mirror_module.open_stream = lambda name: (opened.append(name), original(name))[1]
    path = mirror_in(folder).copy(url, "contents", size, 10**9)
    queue.put((len(opened), path is not None and path.stat().st_size == size))


def test_processes_of_a_machine_copy_a_shard_once(tmp_path: Path) -> None:
    (tmp_path / "big.tar").write_bytes(os.urandom(20_000_000))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    arguments = (str(tmp_path / "m"), f"file://{tmp_path}/big.tar", 20_000_000, queue)
    processes = [context.Process(target=copy_counted, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sum(opened for opened, _ in results) == 1
    assert all(whole for _, whole in results)


def test_what_dead_processes_left_makes_room(tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(bytes(1000))
    mirror = mirror_in(tmp_path / "m")
    dead = 2**22 - 7  # above any process number here
    (tmp_path / "m" / "old.copy").write_bytes(bytes(600))
    (tmp_path / "m" / f".old.copy.{dead}.lease").touch()
    (tmp_path / "m" / f".half.copy.{dead}.tmp").write_bytes(bytes(600))
    assert mirror.copy(f"file://{tmp_path}/one.tar", "one", 1000, 1000) is not None
    assert sorted(path.name for path in (tmp_path / "m").glob("*.copy")) == ["one.copy"]
    assert not list((tmp_path / "m").glob(f".*{dead}*"))
    (tmp_path / "two.tar").write_bytes(bytes(1000))
    assert mirror.copy(f"file://{tmp_path}/two.tar", "two", 1000, 1000) is None  # the other one is in use


def test_a_file_that_is_not_what_was_promised_is_no_copy(tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(bytes(1000))
    url = f"file://{tmp_path}/one.tar"
    for size, sha256, reason in ((900, None, "1000 bytes are not the 900"), (1000, "0" * 64, "are not the 1000")):
        with pytest.raises(ShardError, match=reason):
            mirror_in(tmp_path / "m").copy(url, "one", size, 10**6, sha256)
    assert not list((tmp_path / "m").glob("*.copy"))
    with pytest.raises(ShardError, match="it ends at byte 1000"):
        read_range(url, 500, 1500)


HOLD = """
import sys, time
from inpaint_data.shards import mirror
from inpaint_data.shards.mirror import mirror_in
folder, url, stalls = sys.argv[1:]
original = mirror.open_stream
class Stalling:
    def __init__(self, stream): self.stream = stream
    def read(self, count):
        print("copying", flush=True)
        time.sleep(600)
def open_stream(url):
    from contextlib import contextmanager
    @contextmanager
    def opened():
        with original(url) as stream: yield Stalling(stream)
    return opened()
if stalls == "stalls": mirror.open_stream = open_stream
mirror_in(folder).copy(url, "one", 1000, 1000)
print("copied", flush=True)
time.sleep(600)
"""


def holder(folder: Path, url: str, how: str) -> subprocess.Popen[str]:
    """A real process that has a copy, or is about to make it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), url, how],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == ("copying" if how == "stalls" else "copied")
    return process


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith((".lock", ".owner")))


def test_a_killed_process_leaves_nothing_that_stays_or_blocks(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.tar").write_bytes(bytes(1000))
    urls = [f"file://{tmp_path}/{name}.tar" for name in ("one", "two")]
    folder = tmp_path / "m"
    for how in ("stalls", "copies"):
        process = holder(folder, urls[0], how)
        try:
            assert mirror_in(folder).copy(urls[1], "two", 1000, 1000) is None  # it is in use, or reserved
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        started = time.perf_counter()
        mirror_module.Mirror(folder)  # as another process opens it
        assert not [name for name in names_in(folder) if name.endswith(".tmp")]
        assert mirror_in(folder).copy(urls[0], "one", 1000, 10**6) is not None
        assert time.perf_counter() - started < 1
        (folder / "one.copy").unlink()
    assert len(list(folder.glob(".*.owner"))) <= 2  # this process's, and one that nobody has looked at yet


def test_leftovers_of_any_shape_and_date_make_room_at_once(tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(bytes(1000))
    folder = tmp_path / "m"
    folder.mkdir()
    alive = os.getppid()  # a process that runs, and has nothing to do with the folder
    leftovers = [f".two.copy.{alive}.tmp", f".two.copy.{os.getpid()}.tmp", f"{'0' * 64}.{alive}.tmp"]
    leftovers += [f".old.copy.{alive}.lease", ".old.copy.nonsense.lease", ".torn.lease", ".gone.owner"]
    leftovers += [".one.lock", ".room.lock", f".{'f' * 32}.owner", f".old.copy.{'f' * 32}.lease"]
    for name in ["old.copy", *leftovers]:
        (folder / name).write_bytes(b"\0{torn" * 100)
        os.utime(folder / name, (4 * 10**9, 4 * 10**9))  # the year 2096
    started = time.perf_counter()
    assert mirror_in(folder).copy(f"file://{tmp_path}/one.tar", "one", 1000, 1000) is not None
    assert time.perf_counter() - started < 1
    own = mirror_in(folder)._owner
    assert names_in(folder) == [f".one.copy.{own}.lease", "one.copy"]


def test_threads_copy_side_by_side(tmp_path: Path) -> None:
    urls = [f"file://{tmp_path}/{number}.tar" for number in range(16)]
    for number in range(16):
        (tmp_path / f"{number}.tar").write_bytes(bytes([number]) * 3_000_000)
    mirror = mirror_in(tmp_path / "m")
    with ThreadPoolExecutor(8) as pool:
        copies = list(pool.map(lambda number: mirror.copy(urls[number], str(number), 3_000_000, 10**9), range(16)))
    assert [copy.read_bytes()[:1] for copy in copies if copy is not None] == [bytes([number]) for number in range(16)]


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "", "a\n", ".", "..", "x" * 200, 7, None])
def test_a_name_that_leads_out_of_the_mirror_is_refused(name: Any, tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(bytes(1000))
    before = sorted(tmp_path.rglob("*"))
    mirror = mirror_in(tmp_path / "m")
    with pytest.raises(ShardError, match=r"one\.tar: .* is not a name for a copy"):
        mirror.copy(f"file://{tmp_path}/one.tar", name, 1000, 10**6, name)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.parent.name != "m"] == sorted(
        [*before, tmp_path / "m"]
    )


@pytest.mark.parametrize("size", [-1, True, 1.5, "7", None])
def test_a_size_that_is_none_is_refused(size: Any, tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(bytes(1000))
    with pytest.raises(ShardError, match=r"one\.tar: .* is not the size of a copy"):
        mirror_in(tmp_path / "m").copy(f"file://{tmp_path}/one.tar", "one", size, 10**6)


def test_no_more_is_copied_than_was_promised(tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(bytes(9 * 2**20))
    with pytest.raises(ShardError, match=r"its 1048576 bytes are not the 1000"):
        mirror_in(tmp_path / "m").copy(f"file://{tmp_path}/one.tar", "one", 1000, 10**6)
    assert names_in(tmp_path / "m") == []


def test_a_mirror_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(bytes(1000))
    (tmp_path / "m").mkdir()
    mirror = mirror_in(tmp_path / "m")
    (tmp_path / "m" / ".room.lock").unlink()
    (tmp_path / "m").rmdir()
    (tmp_path / "m").write_text("in the way")
    with pytest.raises(UsageError, match=r"mirror: cannot work in .*Not a directory"):
        mirror.copy(f"file://{tmp_path}/one.tar", "one", 1000, 10**6)
    (tmp_path / "m").unlink()
