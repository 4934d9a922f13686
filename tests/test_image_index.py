"""The index of image shards, and counts beside them: exact epochs of what lies elsewhere, and nothing read in vain."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Pooling, run, small_samples, write_shard
from flat import cache_latents, data_module
from lightning.pytorch.callbacks import ModelCheckpoint
from test_stores import Web, web  # noqa: F401 - a fixture
from test_streaming import SMALL, fit, keys_of, put

from inpaint_data import Autoencoder, InpaintDataModule, ShardError, UsageError
from inpaint_data.errors import ReplacedError
from inpaint_data.order import permutation
from inpaint_data.pipeline.dealing import deal
from inpaint_data.pipeline.image_indexing import index_shards
from inpaint_data.shards import store_errors
from inpaint_data.shards.index_files import INDEX_FILE, entries_for
from inpaint_data.shards.mirror import ROOM, mirror_in

# As `widsindex create` of webdataset 0.2.111 and `energon prepare` 7.4.1 write them.
WIDS = {
    "__kind__": "wids-shard-index-v1",
    "wids_version": 1,
    "shardlist": [{"url": f"file:{number:03}.tar", "nsamples": 4, "filesize": 20480} for number in range(12)],
    "name": "file",
}
ENERGON = {"energon_version": "7.4.1", "shard_counts": {f"{number:03}.tar": 4 for number in range(12)}}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(store_errors, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def module(source: Any, **more: Any) -> InpaintDataModule:
    return data_module(source, **SMALL | {"batch_size": 2, "vae": Autoencoder(Pooling()), "mirror": "none"} | more)


def urls_on(web: Web, count: int = 12) -> list[str]:  # noqa: F811
    put(web.folder, count)
    return [f"{web.url}/{number:03}.tar" for number in range(count)]


def tars_of(web: Web) -> list[str]:  # noqa: F811
    return [path for path in web.paths if path.endswith(".tar")]


# ---- the command


def test_the_command_indexes_shards_and_again_only_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(tmp_path / "in", 3)
    code, out, _ = run(capsys, "index", folder)
    assert code == 0
    assert out.split("\n")[:2] == ["  shards    3 indexed, 0 were already there", "  samples   12"]
    put(tmp_path / "in", 4)  # the same three, written anew, and another
    for number in range(3):
        os.utime(tmp_path / "in" / f"{number:03}.tar")
    write_shard(tmp_path / "in" / "001.tar", small_samples(7))
    with np.load(tmp_path / "in" / INDEX_FILE) as index:
        assert {"about", "keys", "start", "end", "offset", "size", "height", "width"} <= set(index.files)
    assert "4 indexed, 0" in run(capsys, "index", folder)[1]
    write_shard(tmp_path / "in" / "002.tar", small_samples(9))
    assert run(capsys, "index", folder)[1].startswith("  shards    1 indexed, 3 were already there\n  samples   24")
    assert run(capsys, "index", folder)[1].startswith("  shards    0 indexed, 4 were")


def test_what_is_no_sample_is_in_the_index_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "in" / "0.tar", small_samples(3) | {"a/../b": {"jpg": b"x"}})
    code, out, _ = run(capsys, "index", str(tmp_path / "in"))
    assert code == 0
    assert "1; the first: 0.tar, sample 'a/../b': " in out
    data = module(str(tmp_path / "in"))
    keys_of(data)
    assert len(keys_of(data)) == 2


def test_s3_shards_are_indexed_beside_themselves_and_read_by_ranges(s3: str, tmp_path: Path) -> None:
    import fsspec

    files, place = fsspec.filesystem("s3"), f"{s3}/{tmp_path.name}"
    put(tmp_path / "in", 3)
    for path in (tmp_path / "in").iterdir():
        files.put_file(str(path), f"{place.removeprefix('s3://')}/{path.name}")
    indexed = index_shards(f"{place}/{{000..002}}.tar")
    assert indexed.place == f"{place}/{INDEX_FILE}"
    assert keys_of(module(f"{place}/{{000..002}}.tar")) == keys_of(module(str(tmp_path / "in")))
    write_shard(tmp_path / "other.tar", small_samples(4, 9))
    files.put_file(str(tmp_path / "other.tar"), f"{place.removeprefix('s3://')}/001.tar")
    with pytest.raises(ReplacedError, match=r"001\.tar: it was replaced since its index was made.*inpaint-data index"):
        keys_of(module(f"{place}/{{000..002}}.tar"))
    assert list(index_shards(f"{place}/*.tar").new) == [f"{place}/001.tar"]
    assert len(keys_of(module(f"{place}/*.tar"))) == 6


def test_a_cache_is_told_from_image_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = put(tmp_path / "in", 1)
    cache_latents(folder, str(tmp_path / "cache"), vae=Autoencoder(Pooling()), **SMALL)
    assert run(capsys, "index", str(tmp_path / "cache"))[1] == "every shard has its sidecar\n"
    assert "leave it out" in run(capsys, "index", folder, "--vae", "demo")[2]
    for path in (tmp_path / "cache").glob("*.json"):
        path.unlink()
    assert "name the VAE" in run(capsys, "index", str(tmp_path / "cache"))[2]
    code, _, err = run(capsys, "index", str(tmp_path / "cache" / "000.tar"))
    assert (code, "is a shard of a latent cache" in err) == (2, True)


# ---- with an index


def test_an_epoch_of_remote_shards_is_that_of_local_ones_and_begins_without_reading_them(
    web: Web,  # noqa: F811
    tmp_path: Path,
) -> None:
    urls = urls_on(web, 200)
    local = keys_of(module(str(web.folder)))
    index_shards(str(web.folder))
    assert keys_of(module(str(web.folder))) == local
    web.paths.clear()
    data = module(urls)
    data.setup("fit")
    batches = data.train_dataloader()
    assert tars_of(web) == ["/000.tar"]  # a byte of it, to see whether the server gives parts
    loader = iter(batches)
    first = tuple(next(loader)["__key__"])
    assert len(tars_of(web)) <= 1 + 2 + 16 + 2 * 2 * 2  # a request for each sample, and some ahead
    assert [first, *(tuple(batch["__key__"]) for batch in islice(loader, 5))] == local[:6]
    loader.close()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("given", [{}, {"num_workers": 2, "workers": "processes"}], ids=str)
def test_copies_are_made_meanwhile_and_change_no_batch(given: dict[str, Any], web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls = urls_on(web)
    index_shards(urls, str(tmp_path / "index.npz"))
    seen = [keys_of(module(urls, index=str(tmp_path / "index.npz"), mirror=str(tmp_path / "m"), **given), 3)]
    seen += [keys_of(module(str(web.folder)), 3)]
    assert seen[0] == seen[1]


def test_a_run_resumes_exactly_and_reads_nothing_before_it(web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls = urls_on(web)
    index_shards(str(web.folder))
    saves = ModelCheckpoint(tmp_path / "all", every_n_train_steps=20, save_top_k=-1)
    unbroken = fit(module(urls), tmp_path, callbacks=(saves,))
    assert len(unbroken) == 24
    path = next((tmp_path / "all").glob("*step=20.ckpt"))
    web.paths.clear()
    assert fit(module(urls), tmp_path, path) == unbroken[20:]
    assert len(tars_of(web)) == 1 + 2 * 4


def test_an_index_that_does_not_fit_is_one_line_that_says_what_to_do(web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls, place = urls_on(web, 3), tmp_path / "index.npz"
    index_shards(urls[:2], str(place))
    with pytest.raises(ShardError, match=r"index\.npz: it has no .*/002\.tar.*run `inpaint-data index`"):
        entries_for(urls, str(place))
    with pytest.raises(UsageError, match=r"it is the index of other shards"):
        entries_for(urls[2:], str(place))
    assert entries_for(urls[2:], str(place), may_be_of_others=True) is None
    with pytest.raises(UsageError, match=r"index: .*nothing\.npz: no such file; make it with `inpaint-data index"):
        entries_for(urls, str(tmp_path / "nothing.npz"))
    whole = place.read_bytes()
    for data in (whole[:-200], whole[:300] + b"\0\0\0\0" + whole[304:], b"PK not at all", b""):
        place.write_bytes(data)
        with pytest.raises(
            ShardError, match=r"index\.npz: damaged, or not an index of shards .*; name another one, or delete it"
        ) as caught:
            entries_for(urls[:2], str(place))
        assert "\n" not in str(caught.value)
    index_shards(urls[:2], str(place))
    write_shard(web.folder / "001.tar", {f"1_{key}": members for key, members in small_samples(5, 8).items()})
    with pytest.raises(ReplacedError, match=r"001\.tar: it was replaced since its index was made"):
        module(urls[:2], index=str(place)).train_dataloader()


def test_a_shard_replaced_while_training_reads_it_ends_the_run(web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls = urls_on(web, 2)
    index_shards(urls, str(tmp_path / "index.npz"))
    data = module(urls, index=str(tmp_path / "index.npz"))
    data.setup("fit")
    loader = data.train_dataloader()
    for number in range(2):
        samples = {f"other_{key}": members for key, members in small_samples(4, number).items()}
        write_shard(web.folder / f"{number:03}.tar", samples)
    with pytest.raises(ReplacedError, match=r"it is not the shard of its index|it was replaced"):
        list(loader)


def test_an_index_that_cannot_be_written_names_out(web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls = urls_on(web, 2)
    with pytest.raises(UsageError, match=r"the index cannot be written .*write it elsewhere with --out FILE"):
        index_shards(urls)
    with pytest.raises(UsageError, match=r"nowhere.*the index cannot be written"):
        index_shards(urls, str(tmp_path / "nowhere" / "index.npz"))


def test_a_server_without_parts_of_files_is_copied_or_refused(web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls = urls_on(web)
    index_shards(str(web.folder))
    local = keys_of(module(str(web.folder)))
    web.has_ranges = False
    with pytest.raises(UsageError, match=r"12 remote shards.*their server gives no parts of files; raise mirror_bytes"):
        keys_of(module(urls))
    assert keys_of(module(urls, mirror=str(tmp_path / "m"))) == local


def test_a_shard_that_cannot_be_read_leaves_the_index_of_the_others(web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls, place = urls_on(web, 3), str(tmp_path / "index.npz")
    web.faults = [None, 404, None]
    with pytest.raises(ShardError, match=r"1 of 3 shards; .*index\.npz has the others"):
        index_shards(urls, place)
    assert len(index_shards(urls, place).new) == 1


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [("start", -1, "outside"), ("end", 10**12, "outside"), ("name", 9, "names members"), ("members", 7, "long")],
)
def test_a_forged_index_is_refused(column: str, value: int, says: str, tmp_path: Path) -> None:
    place = index_shards(put(tmp_path / "in", 1)).place
    with np.load(place) as file:
        columns: dict[str, Any] = {name: file[name] for name in file.files}
    columns[column][0] = value
    np.savez(place, **columns)
    with pytest.raises(ShardError, match=rf"damaged, or not an index of shards \(it.*{says}"):
        module(str(tmp_path / "in")).train_dataloader()
    np.savez(place, about=np.array([{"format": 1}], object))
    with pytest.raises(ShardError, match="damaged, or not an index"):
        module(str(tmp_path / "in")).train_dataloader()


# ---- with counts


@pytest.fixture(params=["wids", "energon"])
def counted(request: pytest.FixtureRequest, web: Web) -> Iterator[list[str]]:  # noqa: F811
    """Twelve remote shards of four samples, and what another tool wrote beside them."""
    urls = urls_on(web)
    (web.folder / ".nv-meta").mkdir()
    name, content = ("shardindex.json", WIDS) if request.param == "wids" else (".nv-meta/.info.json", ENERGON)
    (web.folder / name).write_text(json.dumps(content))
    return urls


def test_counts_of_other_tools_say_how_long_an_epoch_is(counted: list[str], web: Web) -> None:  # noqa: F811
    data = module(counted, shuffle_buffer=4)
    data.setup("fit")
    assert tars_of(web) == []
    loader = data.train_dataloader()
    assert len(loader) == 24
    keys = [tuple(batch["__key__"]) for batch in loader]
    assert len({key for batch in keys for key in batch}) == 48
    processes = keys_of(module(counted, shuffle_buffer=4, num_workers=3, workers="processes"))
    assert len(processes) == 24
    assert len({key for batch in processes for key in batch}) == 48


@pytest.mark.parametrize("of", [1, 2, 5, 7])
def test_readers_get_equally_many_samples_and_each_but_once(of: int) -> None:
    counts = np.array([3, 0, 10, 1, 4, 4, 9, 2, 6])
    order = permutation(len(counts), 0, 1)
    shares = []
    for number in range(of):
        parts = deal(order, number, of, counts)
        shares.append(
            [(p.shard, n) for p in parts for n in range(p.first, counts[p.shard] if p.stop is None else p.stop)]
        )
    assert {len(share) for share in shares} <= {counts.sum() // of, counts.sum() // of + 1}
    assert sorted(sample for share in shares for sample in share) == [
        (shard, n) for shard in range(len(counts)) for n in range(counts[shard])
    ]


def test_other_readers_take_no_shard_twice_however_far_each_is(web: Web, tmp_path: Path) -> None:  # noqa: F811
    for number in range(24):  # of very different sizes
        samples = {
            f"{number:03}_{n}": members
            for n, members in enumerate(small_samples(1 + 7 * (number % 3), number).values())
        }
        write_shard(web.folder / f"{number:03}.tar", samples)
    urls = [f"{web.url}/{number:03}.tar" for number in range(24)]
    counts = {f"{number:03}.tar": 1 + 7 * (number % 3) for number in range(24)}
    (web.folder / ".nv-meta").mkdir()
    (web.folder / ".nv-meta" / ".info.json").write_text(json.dumps({"shard_counts": counts}))
    given: dict[str, Any] = {"shuffle_buffer": 3, "batch_size": 4}
    saves = ModelCheckpoint(tmp_path / "all", every_n_train_steps=1, save_top_k=-1)
    before = fit(module(urls, num_workers=3, workers="processes", **given), tmp_path, callbacks=(saves,))
    assert len(before) == sum(counts.values()) // 3 // 4 * 3
    for step in (1, 6, 20):
        path = next((tmp_path / "all").glob(f"*step={step}.ckpt"))
        after = fit(module(urls, **given), tmp_path, path)
        taken, rest = ([key for _, keys, _ in steps for key in keys] for steps in (before[:step], after))
        assert not {key.split("_")[0] for key in taken} & {key.split("_")[0] for key in rest}
        assert len(set(rest)) == len(rest)
        assert rest


# ---- the mirror


@pytest.mark.parametrize("workers", [{}, {"num_workers": 2, "workers": "processes"}], ids=["one", "two processes"])
def test_streams_stay_below_their_limit_together_and_keep_what_they_can(
    workers: dict[str, Any],
    web: Web,  # noqa: F811
    tmp_path: Path,
) -> None:
    urls = urls_on(web, 12)
    sizes = [path.stat().st_size for path in web.folder.glob("*.tar")]
    limit, mirror, most, done = 4 * max(sizes), tmp_path / "m", [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            files = []
            with mirror_in(mirror)._locked(ROOM):  # what is there at one moment
                for entry in os.scandir(mirror):
                    with suppress(FileNotFoundError):  # a copy that is ready is renamed meanwhile
                        files += [entry.stat()] if entry.name.endswith((".copy", ".tmp")) else []
            most[0] = max(most[0], sum({status.st_ino: status.st_size for status in files}.values()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        given = {"epoch_batches": 24, "shuffle_buffer": 4, "mirror": str(mirror), "mirror_bytes": limit} | workers
        keys = [keys_of(module(urls, **given), epoch) for epoch in (0, 1)]
    finally:
        done.set()
        watcher.join()
    assert keys == [keys_of(module(urls, **given | {"mirror": "none"}), epoch) for epoch in (0, 1)]
    assert 0 < most[0] <= limit
    assert len(list(mirror.glob("*.copy"))) == 4  # the last ones, for whoever comes next
    assert workers or not list(mirror.glob(".*.lease"))


def test_a_second_epoch_reads_what_still_lies_here(web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls = urls_on(web, 6)
    data = module(urls, epoch_batches=12, shuffle_buffer=4, mirror=str(tmp_path / "m"))
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(list(loader)) == 12
    first = tars_of(web)
    assert len(list(loader)) == 12
    assert len(tars_of(web)) - len(first) <= 1  # the first epoch's first shard was read where it lies


# ---- several sources


def two_on(web: Web) -> list[list[str]]:  # noqa: F811
    """The shards of two sources, of samples with other names."""
    for name, first in (("a", 0), ("b", 6)):
        (web.folder / name).mkdir()
        for number in range(6):
            samples = {f"{name}{number}_{key}": members for key, members in small_samples(4, first + number).items()}
            write_shard(web.folder / name / f"{number}.tar", samples)
    return [[f"{web.url}/{name}/{number}.tar" for number in range(6)] for name in "ab"]


def mixed(sources: Any, **more: Any) -> InpaintDataModule:
    return module(
        [{"source": source, "weight": weight} for source, weight in zip(sources, (2, 1), strict=True)], **more
    )


@pytest.mark.parametrize("named", [False, True], ids=["beside each", "named"])
def test_of_several_remote_sources_each_is_read_by_its_own_index(named: bool, web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls = two_on(web)
    local = keys_of(mixed([str(web.folder / "a"), str(web.folder / "b")]))
    out = str(tmp_path / "of_a.npz")
    index_shards(*(urls[0], out) if named else (str(web.folder / "a"),))
    index_shards(str(web.folder / "b"))
    web.paths.clear()
    data = mixed(urls, **({"index": out} if named else {}))
    data.setup("fit")
    data.train_dataloader()
    assert tars_of(web) == ["/a/0.tar", "/b/0.tar"]  # a byte of each, to see whether the server gives parts
    assert keys_of(data) == local


def test_of_several_remote_sources_counts_are_not_enough(web: Web) -> None:  # noqa: F811
    urls = two_on(web)
    for name in "ab":
        counts = {f"{number}.tar": 4 for number in range(6)}
        path = web.folder / name / ".nv-meta" / ".info.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"shard_counts": counts}))
    with pytest.raises(
        UsageError, match=r"source\[0\]: 6 remote shards of [\d,]+ bytes are to be copied.*epoch_batches"
    ):
        keys_of(mixed(urls))


def test_streams_of_several_sources_have_the_same_batches_with_copies(web: Web, tmp_path: Path) -> None:  # noqa: F811
    urls, stream = two_on(web), {"epoch_batches": 18, "shuffle_buffer": 6}
    local = keys_of(mixed([str(web.folder / "a"), str(web.folder / "b")], **stream))
    assert keys_of(mixed(urls, **stream)) == local
    mirror = tmp_path / "m"
    assert keys_of(mixed(urls, **stream, mirror=str(mirror))) == local
    assert len(list(mirror.glob("*.copy"))) > 6, "shards of both are copied"
