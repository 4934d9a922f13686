"""Whoever deletes, cuts, edits or forges any one file of a cache sees it named, and repair makes it good again."""

import hashlib
import io
import json
import os
import re
import shutil
import socket
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import PHOTOS, run, write_shard
from flat import cache_latents

from inpaint_data import Autoencoder, CacheError, Problem, UsageError, repair_cache, verify_cache
from inpaint_data.latent_cache.encodings import json_bytes, npy_bytes
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.format import Sidecar, committed, read_cache_file, write_cache_file
from inpaint_data.latent_cache.lock import LOCK, this_place
from inpaint_data.latent_cache.writer import ShardWriter

SETTINGS = {"resolution": 64, "masks": "mixture", "mask_offset": (-4, 9), "batch_size": 2, "variants": 2, "seed": 5}
Members = dict[str, bytes]


def make(shards: Path, out: Path, vae: Autoencoder) -> None:
    cache_latents(str(shards), str(out), vae=vae, max_bad_fraction=1.0, **SETTINGS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, vae: Autoencoder) -> Path:
    """`in`: three shards of images, with an undecodable one and a shard cut short; `cache`: made of them."""
    folder = tmp_path_factory.mktemp("verify")
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"), key=lambda path: path.stat().st_size)[:5]]
    captions = {"txt": "a photo, ein Photo, ein Föto".encode()}
    for name, numbers in {"a": (0, 1, 2), "b.c": (3,), "d": (4, 0)}.items():
        write_shard(folder / "in" / f"{name}.tar", {f"{name[0]}{i}": {"jpg": photos[i]} | captions for i in numbers})
    write_shard(
        folder / "in" / "b.c.tar", {"b3": {"jpg": photos[3]}, "undecodable": {"jpg": photos[3][:900]}, "b4": captions}
    )
    cut = (folder / "in" / "d.tar").read_bytes()
    (folder / "in" / "d.tar").write_bytes(cut[: len(photos[4]) + 4096])
    make(folder / "in", folder / "cache", vae)
    return folder


@pytest.fixture
def cache(made: Path, tmp_path: Path) -> Path:
    """A cache of one's own to damage."""
    return Path(shutil.copytree(made / "cache", tmp_path / "cache"))


@pytest.fixture
def inputs(made: Path, tmp_path: Path) -> Path:
    """Inputs of one's own to change."""
    return Path(shutil.copytree(made / "in", tmp_path / "in"))


def named(problems: list[Problem]) -> set[str]:
    return {problem.file for problem in problems}


def contents(cache: Path) -> dict[str, bytes]:
    """All that is in a cache but the stamps of its inputs, which have the time in them."""
    return {path.name: path.read_bytes() for path in cache.iterdir() if not path.name.startswith(".")}


def damages(data: bytes, seed: int) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    found = {"emptied": b"", "a byte short": data[:-1], "half": data[: len(data) // 2]}
    found |= {f"{end!r} appended": data + end for end in (b"x", b"\n", b"\0", b"\0" * 10240)}
    for at in [0, len(data) - 1, *rng.integers(0, len(data), 25).tolist()]:
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        found[f"byte {at} flipped"] = bytes(flipped)
    return found


def test_a_good_cache_has_no_problem(made: Path) -> None:
    found = verify_cache(made / "cache")
    assert found.problems == []
    assert found.ok
    assert found.totals == json.loads((made / "cache" / "cache.json").read_bytes())["totals"]
    assert (found.totals["shards"], found.totals["samples"], found.totals["quarantined"]) == (3, 5, 3)


def test_any_file_that_is_deleted_cut_edited_or_emptied_is_named(cache: Path) -> None:
    files = sorted(contents(cache))
    assert files == ["a.json", "a.tar", "b.c.json", "b.c.tar", "cache.json", "d.json", "d.tar"]
    for seed, name in enumerate(files):
        path, data = cache / name, (cache / name).read_bytes()
        path.unlink()
        assert name in str(verify_cache(cache).problems), f"{name} deleted"
        for damage, damaged in damages(data, seed).items():
            path.write_bytes(damaged)
            assert name in named(verify_cache(cache).problems), f"{name} {damage}"
        path.write_bytes(data)
    assert verify_cache(cache).ok


def test_every_problem_is_found_not_the_first(cache: Path) -> None:
    (cache / "a.tar").unlink()
    (cache / "b.c.json").write_bytes(b"{}")
    (cache / "d.tar").write_bytes((cache / "d.tar").read_bytes()[:-1])
    (cache / "notes.txt").write_text("mine")
    assert named(verify_cache(cache).problems) == {"a.tar", "b.c.json", "d.tar", "notes.txt", "cache.json"}


def test_a_shard_deleted_with_its_sidecar_is_noticed_after_a_finished_run(cache: Path) -> None:
    for name in ("a.tar", "a.json"):
        (cache / name).unlink()
    found = verify_cache(cache)
    assert named(found.problems) == {"cache.json"}
    assert found.totals["shards"] == 2


def test_a_cache_that_is_being_written_is_incomplete_but_not_damaged(cache: Path) -> None:
    write_cache_file(CacheFolder(cache), read_cache_file(cache).settings_json, None)
    (cache / "a.json").unlink()
    (cache / f".d.tar.{os.getpid()}.tmp").write_bytes(b"half")
    found = verify_cache(cache)
    assert found.ok
    assert "not finished" in found.table()


def test_shards_of_other_settings_are_named(cache: Path) -> None:
    file = read_cache_file(cache)
    masks = file.settings_json["masks"] | {"fill": "black"}
    write_cache_file(CacheFolder(cache), file.settings_json | {"masks": masks}, sidecars_of(cache))
    assert {"a.json", "b.c.json", "d.json"} <= named(verify_cache(cache).problems)
    with pytest.raises(CacheError, match="no shard was made with its settings"):
        repair_cache(cache)


def forge(cache: Path, stem: str, change: Callable[[dict[str, Members]], None]) -> None:
    """Rewrite a shard with changed samples and redo every size, offset, hash and total, as a forger would."""
    old, samples = Sidecar.read(cache / f"{stem}.json"), dict[str, Members]()
    data = (cache / f"{stem}.tar").read_bytes()
    for row, key in enumerate(old.keys):
        samples[key] = {name: data[at.offset : at.end] for name, at in old.index.of_row(row).items()}
    old_sizes = dict(zip(old.keys, old.index.target_sizes.tolist(), strict=True))
    change(samples)
    writer = ShardWriter(CacheFolder(cache), stem)
    for key, members in samples.items():
        writer.add(key, members, old_sizes.get(key, old_sizes[old.keys[0]]))
    writer.commit(old.fingerprint, old.input, old.variants, old.made_with, old.quarantined)
    redo_totals(cache)


def redo_totals(cache: Path) -> None:
    write_cache_file(CacheFolder(cache), read_cache_file(cache).settings_json, sidecars_of(cache))


def sidecars_of(cache: Path) -> list[Any]:
    """However forged."""
    return [SimpleNamespace(**json.loads(path.read_bytes())) for path in committed(cache)]


def sign_again(cache: Path) -> None:
    """Let every sidecar have the fingerprint of the settings, and the totals fit."""
    fingerprint = read_cache_file(cache).fingerprint
    for path in committed(cache):
        path.write_bytes(replace(Sidecar.read(path), fingerprint=fingerprint).to_bytes())
    redo_totals(cache)


def array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes], bytes]:
    return lambda data: npy_bytes(change(np.load(io.BytesIO(data))))


def record(**fields: object) -> Callable[[bytes], bytes]:
    return lambda data: json_bytes(json.loads(data) | fields)


def variant(**fields: object) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        content = json.loads(data)
        content["variants"][1] |= fields
        return json_bytes(content)

    return change


def pickled(_: bytes) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"run": "me"}], object), allow_pickle=True)
    return buffer.getvalue()


def with_nan(values: np.ndarray) -> np.ndarray:
    values.flat[7] = np.nan
    return values


FORGERIES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("latents.npy", array(with_nan), "NaN"),
    ("latents.npy", array(lambda x: x.astype(np.float32)), "is float32, the cache stores float16"),
    ("latents.npy", array(lambda x: x[:, :4]), r"shape \(8, 4, 8\)"),
    ("latents.npy", array(lambda x: x[:7]), r"shape \(7, 8, 8\)"),
    ("latents.npy", array(lambda x: x[:6]), r"shape \(6, 8, 8\)"),
    ("latents.npy", lambda data: data + b"x", "not laid out"),
    ("latents.npy", lambda _: b"", "not an array"),
    ("latents.npy", pickled, "not an array"),
    ("masked_latents.npy", array(lambda x: x[:1]), "shape"),
    ("masked_latents.npy", array(with_nan), "NaN"),
    ("mask.pbm", lambda _: b"P5\n64 128\n255\n" + bytes(64 * 128), "not a binary PBM"),
    ("mask.pbm", lambda _: b"P1\n64 128\n" + b"0 " * (64 * 128), "not a binary PBM"),
    ("mask.pbm", lambda _: b"P4\n64 64\n" + bytes(8 * 64), "masks have the shape"),
    ("mask.pbm", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "says coverage"),
    ("mask.pbm", lambda data: data.replace(b"P4\n", b"P4\n ", 1), "not laid out"),
    ("inpaint.json", variant(offset=10), r"offset 10, outside the cache's -4\.\.\.9"),
    ("inpaint.json", variant(offset=True), "offset True"),
    ("inpaint.json", variant(coverage=0.123), "says coverage 0.123"),
    ("inpaint.json", variant(coverage=float("nan")), "says coverage nan"),
    ("inpaint.json", variant(generator=""), "generator"),
    ("inpaint.json", variant(edits="inverted"), "edits inverted, which is not a list of words"),
    ("inpaint.json", variant(edits=[1]), r"edits \[1\], which is not a list of words"),
    ("inpaint.json", variant(window="octagon"), "window 'octagon', which is not among the cache's square"),
    ("inpaint.json", variant(note="hello"), "has the fields"),
    ("inpaint.json", record(variants=[]), "does not have the cache's 2 variants"),
    ("inpaint.json", record(target_size=[64, 128]), "target_size"),
    ("inpaint.json", record(crop_top_left=[-1, 0]), "crop_top_left"),
    ("inpaint.json", record(original_size=[1.5, 2]), "original_size"),
    ("inpaint.json", record(caption=None), "caption"),
    ("inpaint.json", record(flip=0), "flip is 0, neither true nor false"),
    ("inpaint.json", record(has_posterior=1), "has_posterior is 1, neither true nor false"),
    ("inpaint.json", record(has_posterior=False), "has_posterior is False, the cache's True"),
    ("inpaint.json", record(note="hello"), "has the fields"),
    ("inpaint.json", lambda _: b"[]\n", "not a JSON object"),
    ("inpaint.json", lambda _: b"[" * 100_000, "not JSON"),
    ("inpaint.json", lambda data: data[:-1], "not laid out"),
]


@pytest.mark.parametrize(("member", "change", "says"), FORGERIES)
def test_a_forged_sample_is_named_with_its_key_though_every_hash_fits(
    member: str, change: Callable[[bytes], bytes], says: str, cache: Path
) -> None:
    forge(cache, "a", lambda samples: samples["a1"].update({member: change(samples["a1"][member])}))
    problems = verify_cache(cache).problems
    assert [(problem.file, problem.key) for problem in problems] == [("a.tar", "a1")]
    assert re.search(says, problems[0].problem), problems


def test_an_odd_number_of_moments_is_named_even_in_the_first_sample(cache: Path) -> None:
    def change(samples: dict[str, Members]) -> None:
        samples["a0"]["latents.npy"] = array(lambda x: x[:7])(samples["a0"]["latents.npy"])
        samples["a0"]["masked_latents.npy"] = array(lambda x: x[:, :7])(samples["a0"]["masked_latents.npy"])

    forge(cache, "a", change)
    assert {(problem.file, problem.key) for problem in verify_cache(cache).problems} == {("a.tar", "a0")}


def test_a_member_that_a_sample_must_have_is_missed(cache: Path) -> None:
    forge(cache, "a", lambda samples: samples["a1"].pop("mask.pbm") and None)
    assert "mask.pbm of sample 'a1'" in str(verify_cache(cache).problems[0])


def rewritten(cache: Path, **changes: object) -> None:
    """Change fields of a sidecar and sign it anew."""
    fields = json.loads((cache / "a.json").read_bytes()) | changes
    content = {name: value for name, value in fields.items() if name != "sha256"} | {"samples": len(fields["keys"])}
    signature = hashlib.sha256(json_bytes(content)).hexdigest()
    (cache / "a.json").write_bytes(json_bytes(content | {"sha256": signature}))
    redo_totals(cache)


def test_an_index_that_does_not_fit_the_tar_is_named(cache: Path) -> None:
    index = json.loads((cache / "a.json").read_bytes())["index"]
    columns = index["latents.npy"]
    moved = columns | {"offset": [columns["offset"][0], columns["offset"][1] + 512, columns["offset"][2]]}
    rewritten(cache, index=index | {"latents.npy": moved})
    assert [(p.file, p.key) for p in verify_cache(cache).problems] == [("a.tar", "a1")]

    rewritten(cache, index={name: each for name, each in index.items() if name != "txt"})
    assert "'a0.txt'" in str(verify_cache(cache).problems[0])

    rewritten(cache, index=index | {"note": {"offset": [512, -1, -1], "size": [1, -1, -1], "crc32": [0, -1, -1]}})
    assert str(verify_cache(cache).problems[0]) == "a.tar, sample 'a0': the tar lacks its note"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"keys": ["a0", "a1", "a1"]}, "its key 'a1' comes twice"),
        ({"keys": ["a0", "a1"]}, "does not have an entry for each of 2 samples"),
        ({"variants": 3}, "says 3 variants"),
        ({"variants": 0}, "says 0 variants"),
        ({"shard": "b.tar"}, "it is the sidecar of 'b.tar'"),
        ({"input": {"size": 1}}, "its input has no size and sha256"),
        ({"index": {}}, "no offsets, sizes and checksums of latents.npy"),
        ({"fingerprint": "0" * 64}, "other settings"),
    ],
)
def test_a_sidecar_whose_fields_disagree_is_named_though_it_is_signed(
    changes: dict[str, object], says: str, cache: Path
) -> None:
    rewritten(cache, **changes)
    problems = verify_cache(cache).problems
    assert "a.json" in named(problems)
    assert says in str(problems)


def test_a_quarantined_sample_without_a_reason_is_named(cache: Path) -> None:
    path = cache / "b.c.json"
    sidecar = Sidecar.read(path)
    object.__setattr__(sidecar.quarantined[0], "reason", "")
    path.write_bytes(sidecar.to_bytes())
    assert "has no reason" in str(verify_cache(cache).problems)


FOUND = {"low": 0, "high": 0, "windows": ["square"], "soft": False, "paired": [], "carry_image": "none"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("vae", {}),
        ("vae.factor", 0),
        ("vae.factor", 1000),
        ("variants", 0),
        ("storage", "int4"),
        ("pictures", None),
        ("pictures.resolution", [0]),
        ("pictures.filters.max_aspect", 10**400),
        ("masks.offset", [9, -4]),
        ("masks.mixture.weights", {"boxes": -1}),
        ("indexed", FOUND | {"sizes": []}),
        ("indexed", FOUND | {"sizes": [[64]]}),
        ("indexed", FOUND | {"sizes": [[64, 0]]}),
        ("note", "hello"),
    ],
)
def test_settings_that_cannot_be_are_named_though_their_fingerprint_fits(
    place: str, value: object, cache: Path
) -> None:
    settings = json.loads((cache / "cache.json").read_bytes())["settings"]
    *groups, name = place.split(".")
    inner = settings
    for group in groups:
        inner = inner[group]
    inner[name] = value
    write_cache_file(CacheFolder(cache), settings, None)
    sign_again(cache)
    problems = verify_cache(cache).problems
    assert [(problem.file, problem.key) for problem in problems] == [("cache.json", None)]
    assert "its settings are not those of a cache" in problems[0].problem


def test_what_is_no_cache_is_a_usage_error(tmp_path: Path, made: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        verify_cache(tmp_path / "none")
    with pytest.raises(UsageError, match=r"has neither a whole cache\.json nor a whole sidecar"):
        verify_cache(made / "in")
    with pytest.raises(UsageError, match="against"):
        verify_cache(made / "cache", deep=True)


# against the inputs


def test_every_input_sample_of_a_good_cache_is_accounted_for(made: Path) -> None:
    assert verify_cache(made / "cache", against=str(made / "in")).problems == []


def test_an_input_sample_that_is_neither_cached_nor_quarantined_is_named(cache: Path, made: Path) -> None:
    forge(cache, "a", lambda samples: samples.pop("a1") and None)
    assert verify_cache(cache).ok
    problems = verify_cache(cache, against=str(made / "in")).problems
    assert [(Path(problem.file).name, problem.key) for problem in problems] == [("a.tar", "a1")]

    sidecar = Sidecar.read(cache / "b.c.json")
    kept = [entry for entry in sidecar.quarantined if entry.key != "undecodable"]
    (cache / "b.c.json").write_bytes(replace(sidecar, quarantined=kept).to_bytes())
    redo_totals(cache)
    assert "undecodable" in {problem.key for problem in verify_cache(cache, against=str(made / "in")).problems}


def test_a_cached_sample_that_the_input_lacks_is_named(cache: Path, made: Path) -> None:
    forge(cache, "a", lambda samples: samples.update({"invented": samples["a1"]}))
    assert verify_cache(cache).ok
    problems = verify_cache(cache, against=str(made / "in")).problems
    assert problems == [Problem("a.json", "invented", "is not in the input")]


def test_a_member_without_a_key_and_a_key_that_comes_again_are_accounted_for(
    tmp_path: Path, vae: Autoencoder, photo_bytes: dict[str, bytes]
) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as tar:
        for name in ("x.jpg", "README", "y.jpg", "x.jpg"):
            entry = tarfile.TarInfo(name)
            entry.size = len(photo_bytes["cat"])
            tar.addfile(entry, io.BytesIO(photo_bytes["cat"]))
    make(tmp_path / "in", tmp_path / "cache", vae)
    assert verify_cache(tmp_path / "cache", against=str(tmp_path / "in")).problems == []

    path = tmp_path / "cache" / "a.json"
    sidecar = Sidecar.read(path)
    assert [entry.key for entry in sidecar.quarantined] == [None, "x"]
    path.write_bytes(replace(sidecar, quarantined=[]).to_bytes())
    redo_totals(tmp_path / "cache")
    problems = verify_cache(tmp_path / "cache", against=str(tmp_path / "in")).problems
    assert [problem.key for problem in problems] == ["x", None]
    assert "are not quarantined in a.json: member 'README' has no key" in problems[1].problem


def test_changed_new_and_removed_inputs_are_named(cache: Path, inputs: Path) -> None:
    with (inputs / "a.tar").open("r+b") as file:
        file.seek(2000)
        file.write(b"changed")
    (inputs / "b.c.tar").rename(inputs / "e.tar")
    problems = {
        Path(problem.file).name: problem.problem for problem in verify_cache(cache, against=str(inputs)).problems
    }
    assert problems.keys() == {"a.tar", "b.c.json", "e.tar"}
    assert "has changed since" in problems["a.tar"]
    assert "has no input any more" in problems["b.c.json"]
    assert "is not in the cache" in problems["e.tar"]


# deep


def test_encoding_again_gives_the_bytes_of_a_good_cache(made: Path, vae: Autoencoder) -> None:
    found = verify_cache(made / "cache", deep=True, against=str(made / "in"), vae=vae)
    assert found.problems == []
    assert "a batch of each of 3 shards, compared to the last bit" in found.table()


def test_plausible_latents_that_the_pictures_do_not_give_are_named(cache: Path, made: Path, vae: Autoencoder) -> None:
    def swap(samples: dict[str, Members]) -> None:
        samples["a0"]["latents.npy"] = samples["a1"]["latents.npy"]

    forge(cache, "a", swap)
    assert verify_cache(cache, against=str(made / "in")).ok
    problems = verify_cache(cache, deep=True, against=str(made / "in"), vae=vae).problems
    assert [(problem.file, problem.key) for problem in problems] == [("a.tar", "a0")]
    assert "latents.npy: up to" in problems[0].problem


def elsewhere(cache: Path) -> None:
    """Let the cache say that it was made with another number of threads."""
    for path in committed(cache):
        sidecar = Sidecar.read(path)
        path.write_bytes(replace(sidecar, made_with=sidecar.made_with | {"threads": 999}).to_bytes())
    redo_totals(cache)


def test_on_another_machine_rounding_is_allowed_and_said(cache: Path, made: Path, vae: Autoencoder) -> None:
    def round_off(samples: dict[str, Members]) -> None:
        samples["a0"]["latents.npy"] = array(lambda x: x + np.float16(0.005))(samples["a0"]["latents.npy"])

    forge(cache, "a", round_off)
    assert not verify_cache(cache, deep=True, against=str(made / "in"), vae=vae).ok
    elsewhere(cache)
    found = verify_cache(cache, deep=True, against=str(made / "in"), vae=vae)
    assert found.problems == []
    assert "within 0.02 * (1 + |value|), since threads: the cache has 999" in found.table()


def test_another_autoencoder_is_refused_by_name(made: Path) -> None:
    with pytest.raises(UsageError, match=r"vae\.weights_sha256: the cache has"):
        verify_cache(made / "cache", deep=True, against=str(made / "in"), vae="demo")


# repair


@pytest.mark.parametrize("files", [("a.json",), ("b.c.tar",), ("a.tar", "b.c.json", "d.json")])
def test_repair_and_the_cache_command_give_the_undisturbed_bytes(
    files: tuple[str, ...], cache: Path, made: Path, vae: Autoencoder
) -> None:
    for name in files:
        data = bytearray((cache / name).read_bytes())
        data[len(data) // 2] ^= 1
        (cache / name).write_bytes(data)
    (cache / "notes.txt").write_text("mine")
    (cache / "letters.json").write_text("{}")
    removed = repair_cache(cache)
    assert removed == sorted(f"{stem}.{end}" for stem in {Path(name).stem for name in files} for end in ("json", "tar"))
    assert all(not (cache / name).exists() for name in removed)
    assert named(verify_cache(cache).problems) == {"notes.txt", "letters.json"}
    for name in ("notes.txt", "letters.json"):
        (cache / name).unlink()
    make(made / "in", cache, vae)
    assert contents(cache) == contents(made / "cache")


def test_repair_of_missing_files_and_of_counts(cache: Path, made: Path, vae: Autoencoder) -> None:
    (cache / "a.tar").unlink()
    (cache / "b.c.json").unlink()
    for name in ("d.tar", "d.json"):
        (cache / name).unlink()
    assert repair_cache(cache) == ["a.json", "b.c.tar"]
    make(made / "in", cache, vae)
    assert contents(cache) == contents(made / "cache")


def test_repair_leaves_a_good_cache_alone(cache: Path, made: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert repair_cache(cache) == []
    assert before == {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    (cache / "a.txt").write_text("mine, though called like a shard")
    assert repair_cache(cache) == []
    assert contents(cache) == contents(made / "cache") | {"a.txt": b"mine, though called like a shard"}


def test_repair_refuses_without_cache_json_and_while_a_job_writes(cache: Path, tmp_path: Path) -> None:
    holder = {"host": socket.gethostname(), "place": this_place(), "pid": os.getppid(), "born": None, "job": "another"}
    (cache / f"{LOCK}1").write_text(json.dumps(holder))
    with pytest.raises(CacheError, match="is writing to this cache"):
        repair_cache(cache)
    (cache / f"{LOCK}1").unlink()
    (cache / "cache.json").write_bytes(b"{")
    (cache / "a.tar").unlink()
    with pytest.raises(CacheError, match="nothing is removed"):
        repair_cache(cache)
    assert (cache / "a.json").exists()
    with pytest.raises(UsageError, match="no such folder"):
        repair_cache(tmp_path / "none")


# the command


def test_the_command_prints_a_line_a_problem_and_exits_1(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge(
        cache, "a", lambda samples: samples["a1"].update({"latents.npy": array(with_nan)(samples["a1"]["latents.npy"])})
    )
    (cache / "b.c.tar").unlink()
    code, out, err = run(capsys, "verify", str(cache))
    assert code == 1
    assert out.startswith("3 shards, 5 samples, 3 quarantined, ")
    assert err == "a.tar, sample 'a1': latents.npy: has NaN or infinity in it\nb.c.tar: missing\n"

    code, out, err = run(capsys, "verify", str(cache), "--json")
    assert (code, err) == (1, "")
    found = json.loads(out)
    assert (found["ok"], found["totals"]["samples"]) == (False, 5)
    assert found["problems"][1] == {"file": "b.c.tar", "key": None, "problem": "missing"}
    assert json.loads(run(capsys, "verify", str(cache), "--json", "true")[1]) == found

    code, out, _ = run(capsys, "repair", str(cache))
    assert code == 0
    assert out.startswith("removed a.json, a.tar, b.c.json; run the cache command again")
    code, out, _ = run(capsys, "verify", str(cache))
    assert code == 0
    assert "not finished" in out


def test_the_command_exits_0_for_a_good_cache_and_2_for_bad_settings(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, inputs = str(made / "cache"), str(made / "in")
    assert run(capsys, "verify", cache, "--against", inputs)[0] == 0
    assert json.loads(run(capsys, "verify", cache, "--json")[1])["ok"]
    for arguments in (
        ("verify", cache, "--deep"),
        ("verify", cache, "--against", "none.tar"),
        ("verify", cache, "--against", inputs, "--deep", "--vae", "demo"),
        ("verify", inputs),
        ("verify", "none"),
        ("repair", "none"),
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert err.count("\n") == 1
