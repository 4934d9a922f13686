"""Every sample of a shard comes out with its own bytes or is named in a fault, whatever happened to the shard."""

import copy
import hashlib
import io
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import fsspec
import pytest
import webdataset
from conftest import write_shard
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from inpaint_data.errors import SampleError, ShardError, UsageError
from inpaint_data.shards import reading as shards
from inpaint_data.shards.naming import (
    ShardIdentity,
    _told_apart,
    expand_shards,
    shard_identity,
    shard_size,
    shard_stem,
)
from inpaint_data.shards.reading import Fault, Sample, ShardEnd, image_member, locate_samples, read_shard

Samples = dict[str, dict[str, bytes]]
LONG = "a long folder name/" * 8
SAMPLES: Samples = {
    "cat": {"jpg": b"\xff\xd8" + bytes(range(256)) * 5, "mask.png": b"\x89PNG" + b"m" * 700, "txt": b"a cat"},
    "dog": {"jpg": b"d" * 512, "json": b"{}"},
    "sub.folder/bird": {"webp": b"RIFF" * 300, "txt": b""},
    "ünïcode": {"jpeg": b"j" * 1023},
    LONG + "fish": {"png": b"p" * 1025, "txt": b"x" * 2048},
    "last": {"jpg": b"l" * 100, "txt": b"the end"},
}


def tar(samples: Samples, format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for key, members in samples.items():
            for extension, data in members.items():
                archive.addfile(entry(f"{key}.{extension}", len(data)), io.BytesIO(data))
    return file.getvalue()


def entry(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_of(*entries: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for info in entries:
            archive.addfile(info, io.BytesIO(b"z" * info.size) if info.size else None)
    return file.getvalue()


def key_of(name: str) -> str:
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".")[0]


def extents(data: bytes) -> dict[str, tuple[int, int]]:
    """Key -> [start, end) in an undamaged tar, found by tarfile."""
    found: dict[str, tuple[int, int]] = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            start, _ = found.get(key_of(info.name), (info.offset, 0))
            found[key_of(info.name)] = (start, info.offset_data + -(-info.size // 512) * 512)
    return found


def known_complete_from(data: bytes) -> dict[str, int]:
    """Key -> how long a cut tar must be to know the sample complete: up to the next one's headers, or the end."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        firsts = {key_of(info.name): info.offset_data for info in reversed(archive.getmembers())}
    keys = list(extents(data))
    end = extents(data)[keys[-1]][1] + 1024
    return dict(zip(keys, [*(firsts[key] for key in keys[1:]), end], strict=True))


class Shelf:
    """Puts bytes into a file and reads them as a shard."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "shard.tar")

    def read(self, data: bytes) -> tuple[Samples, list[Fault]]:
        Path(self.path).write_bytes(data)
        *items, end = read_shard(self.path)
        faults = [item for item in items if isinstance(item, Fault)]
        samples = {item.key: item.members for item in items if isinstance(item, Sample)}
        assert len(samples) + len(faults) == len(items)
        assert {item.shard for item in items} <= {self.path}
        identity = ShardIdentity(len(data), hashlib.sha256(data).hexdigest())
        assert end == ShardEnd(self.path, identity, len(samples) + sum(fault.key is not None for fault in faults))
        return samples, faults

    def nothing_is_lost(self, damaged: bytes, original: Samples, where: dict[str, tuple[int, int]]) -> None:
        """Each original sample came out with its bytes, or lies in a fault by key or by extent."""
        samples, faults = self.read(damaged)
        for fault in faults:
            assert 0 <= fault.offset <= fault.end <= len(damaged)
            assert fault.reason
            assert "\n" not in fault.reason
        for key, (start, end) in where.items():
            if samples.get(key) != original[key]:
                assert any(
                    fault.key == key
                    or (fault.offset < end and (fault.end > start or fault.end == len(damaged)))
                    or (fault.offset == fault.end == 0 == len(damaged))
                    for fault in faults
                ), (key, faults)
        assert all(members == original[key] for key, members in samples.items())


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


# ---- undamaged


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_samples_that_went_in(name: str, shelf: Shelf) -> None:
    samples, faults = shelf.read(tar(SAMPLES, FORMATS[name]))
    assert samples == SAMPLES
    assert list(samples) == list(SAMPLES)
    assert faults == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_shard_reads_as_webdataset_reads_it(name: str, shelf: Shelf) -> None:
    odd: Samples = {**SAMPLES, "./here": {"jpg": b"1"}, "UP": {"JPG": b"2", "Txt": b"3"}}
    samples, faults = shelf.read(tar(odd, FORMATS[name]))
    theirs = {}
    for item in webdataset.WebDataset(shelf.path, shardshuffle=False, empty_check=False):
        theirs[item["__key__"]] = {field: data for field, data in item.items() if not field.startswith("__")}
    assert samples == theirs
    assert faults == []


def test_shards_of_webdatasets_writer_are_read(shelf: Shelf) -> None:
    with webdataset.TarWriter(shelf.path, encoder=False) as writer:
        for key, members in SAMPLES.items():
            writer.write({"__key__": key, **members})
    samples, faults = shelf.read(Path(shelf.path).read_bytes())
    assert samples == SAMPLES
    assert faults == []


def test_numbers_in_base_256_and_signed_checksums_are_read(shelf: Shelf) -> None:
    def with_checksum(header: bytearray, signed: bool) -> bytes:
        header[148:156] = b" " * 8
        total = sum(memoryview(header).cast("b")) if signed else sum(header)
        header[148:156] = f"{total:06o}\0 ".encode()
        return bytes(header)

    data = tar({"ü": {"txt": b"hello"}})
    header = bytearray(data[:512])
    assert shelf.read(with_checksum(header, signed=True) + data[512:])[0] == {"ü": {"txt": b"hello"}}
    header[124:136] = b"\x80" + (5).to_bytes(11, "big")
    assert shelf.read(with_checksum(header, signed=False) + data[512:])[0] == {"ü": {"txt": b"hello"}}


def test_pax_size_and_global_path_are_honoured_and_other_records_are_not_needed(shelf: Shelf) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "git"}) as archive:
        info = entry("a.txt", 3, pax_headers={"mtime": "1.5", "SCHILY.xattr.user": "x=y\nz"})
        archive.addfile(info, io.BytesIO(b"abc"))
    assert shelf.read(file.getvalue()) == ({"a": {"txt": b"abc"}}, [])
    body = b"11 size=3\n".replace(b"11", b"10") + b"14 path=b.txt\n"
    pax = entry("PaxHeader", len(body), tarfile.XHDTYPE).tobuf() + body.ljust(512, b"\0")
    zero_in_header = entry("b.txt", 0).tobuf() + b"abc".ljust(512, b"\0")
    assert shelf.read(pax + zero_in_header + bytes(1024)) == ({"b": {"txt": b"abc"}}, [])


def test_directories_and_what_macos_leaves_behind_are_passed_over(shelf: Shelf) -> None:
    data = tar_of(
        entry("./", kind=tarfile.DIRTYPE),
        entry("./._cat.jpg", 200),
        entry("./cat.jpg", 5),
        entry("./.DS_Store", 600),
        entry("./cat.txt", 3),
        entry("PaxHeaders.12/cat.jpg", 30),
    )
    assert shelf.read(data) == ({"./cat": {"jpg": b"zzzzz", "txt": b"zzz"}}, [])


def test_an_archive_without_members_has_no_samples(shelf: Shelf) -> None:
    assert shelf.read(tar_of()) == ({}, [])


# ---- damage


@pytest.mark.parametrize("name", FORMATS)
def test_a_shard_cut_anywhere_loses_nothing_silently(name: str, shelf: Shelf) -> None:
    data = tar(SAMPLES, FORMATS[name])
    where = extents(data)
    complete = known_complete_from(data)
    boundaries = range(0, len(data), 512)
    for length in [at + step for at in boundaries for step in (0, 1, 100, 511)]:
        samples, faults = shelf.read(data[:length])
        assert samples == {key: SAMPLES[key] for key, needed in complete.items() if needed <= length}
        assert len(faults) == (length < complete["last"])
        assert all(fault.end == length for fault in faults)
        shelf.nothing_is_lost(data[:length], SAMPLES, where)


@pytest.mark.parametrize("name", FORMATS)
def test_any_changed_byte_of_any_header_is_found(name: str, shelf: Shelf) -> None:
    data = tar(SAMPLES, FORMATS[name])
    where = extents(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        headers = [info.offset_data - 512 for info in archive] + [start for start, _ in where.values()]
    for header in sorted(set(headers))[::5]:
        for at in range(header, header + 512):
            damaged = bytearray(data)
            damaged[at] ^= 0x01 if at % 2 else 0x80
            shelf.nothing_is_lost(bytes(damaged), SAMPLES, where)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_key_behind_the_damage_is_named(name: str, shelf: Shelf) -> None:
    data = bytearray(tar(SAMPLES, FORMATS[name]))
    data[extents(bytes(data))["dog"][0]] ^= 1
    samples, faults = shelf.read(bytes(data))
    assert samples == {}  # whether the cat was whole cannot be known
    assert {fault.key for fault in faults} == set(SAMPLES)  # the dog by its json
    assert faults[0].key == "cat"
    assert all(fault.end == len(data) for fault in faults)


@settings(
    max_examples=800,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(
    name=st.sampled_from(sorted(FORMATS)),
    what=st.sampled_from(["zero", "repeat", "insert", "noise"]),
    first=st.integers(0, 60),
    count=st.integers(1, 12),
    random=st.randoms(use_true_random=False),
)
def test_blocks_overwritten_or_put_in_lose_nothing_silently(
    shelf: Shelf, name: str, what: str, first: int, count: int, random: Random
) -> None:
    """Whole blocks, as disks and interrupted copies damage them; where only data changed, a tar cannot tell."""
    data = tar(SAMPLES, FORMATS[name])
    where = extents(data)
    at, length = first * 512 % len(data), count * 512
    assume(what != "zero" or at + length < where["last"][1])  # else it is a tar that ends earlier
    piece = {
        "zero": bytes(len(data[at : at + length])),
        "repeat": data[at : at + length] * 2,
        "insert": random.randbytes(length) + data[at : at + length],
        "noise": random.randbytes(len(data[at : at + length])),
    }[what]
    damaged = data[:at] + piece + data[at + length :]
    samples, faults = shelf.read(damaged)
    touched = {key for key, (start, end) in where.items() if at < end and at + length > start}
    for key in SAMPLES:
        same = samples.get(key) == SAMPLES[key]
        start, end = where[key]
        held = any(
            fault.key == key or (fault.offset < end and (fault.end > start or fault.end == len(damaged)))
            for fault in faults
        )
        assert same or held or (key in touched and key in samples and set(samples[key]) == set(SAMPLES[key])), (
            key,
            faults,
        )


def test_a_flipped_byte_in_a_members_data_is_not_the_tars_to_find(shelf: Shelf) -> None:
    data = bytearray(tar(SAMPLES))
    data[600] ^= 1
    samples, faults = shelf.read(bytes(data))
    assert faults == []
    assert {key for key in SAMPLES if samples[key] != SAMPLES[key]} == {"cat"}


def test_a_cut_at_a_member_boundary_holds_back_the_sample_that_may_be_incomplete(shelf: Shelf) -> None:
    data = tar(SAMPLES)
    start, end = extents(data)["dog"]
    samples, faults = shelf.read(data[:end])
    assert list(samples) == ["cat"]
    (fault,) = faults
    assert (fault.key, fault.offset, fault.end) == ("dog", start, end)
    assert "zero blocks" in fault.reason


def test_an_unfinished_download_of_full_length_is_found(shelf: Shelf) -> None:
    data = tar({f"{number:03d}": {"jpg": b"j" * 900, "txt": b"t"} for number in range(30)})
    samples, faults = shelf.read(data[: 2048 * 7 + 1536] + bytes(len(data) - 2048 * 7 - 1536))
    assert len(samples) == 6
    assert faults[0].key == "006"
    assert "unfinished download" in faults[0].reason


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file, not a tar"),
        (b"\x1f\x8b" + bytes(600), "gunzip"),
        (b"hello", "cut off at byte 5"),
        (b"h" * 2000, "not a tar header"),
        (bytes(512), "second one"),
        (tar({"a": {"jpg": b"1"}}) * 2, "joined by cat"),
        (entry("x", 9, tarfile.XHDTYPE).tobuf() + bytes(512) + bytes(1024), "where a number belongs"),
        (entry("x", 9, tarfile.GNUTYPE_LONGNAME).tobuf() + bytes(512) + bytes(1024), "no name in it"),
        (entry("x", 2**21, tarfile.GNUTYPE_LONGNAME).tobuf() + bytes(2**21), "claims 2097152 bytes"),
        (
            entry("x", 9, tarfile.XHDTYPE).tobuf() + b"no length".ljust(512, b"\0") + bytes(1024),
            "where a number belongs",
        ),
        (entry("x", 9, tarfile.XHDTYPE).tobuf() + b"8 a=bcdef".ljust(512, b"\0") + bytes(1024), "extended header"),
        (entry("x", 6, tarfile.XHDTYPE).tobuf() + b"6 a=b\n".ljust(512, b"\0") + bytes(1024), "without its member"),
    ],
)
def test_what_is_no_whole_tar_is_one_fault_with_its_reason(data: bytes, reason: str, shelf: Shelf) -> None:
    samples, faults = shelf.read(data)
    assert samples == {}
    (fault,) = faults
    assert reason in fault.reason
    assert (fault.offset, fault.end) == (0, len(data))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=1500))
def test_any_bytes_at_all_give_faults_and_no_exception(shelf: Shelf, data: bytes) -> None:
    kinds = [entry("x", min(len(data), 511), kind).tobuf() for kind in (b"x", b"L", b"g", b"0")]
    for head in (b"", *kinds):
        shelf.read(head + data)


# ---- members that cannot be taken


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (entry("cat.mask.png", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), "symbolic link"),
        (entry("cat.mask.png", kind=tarfile.LNKTYPE, linkname="cat.jpg"), "hard link"),
        (entry("cat.mask.png", kind=tarfile.CHRTYPE), "device"),
        (entry("cat.mask.png", kind=tarfile.FIFOTYPE), "named pipe"),
        (entry("cat.mask.png", 600, kind=b"Z"), "unknown type"),
        (entry("cat.mask.png", 600, kind=tarfile.GNUTYPE_SPARSE), "sparse"),
        (entry("cat.JPG", 600), "second jpg"),
    ],
)
def test_a_sample_with_a_member_that_cannot_be_taken_is_one_fault(
    bad: tarfile.TarInfo, reason: str, shelf: Shelf
) -> None:
    data = tar_of(entry("ant.jpg", 5), entry("cat.jpg", 5), bad, entry("cat.txt", 3), entry("dog.jpg", 5))
    samples, faults = shelf.read(data)
    assert list(samples) == ["ant", "dog"]
    (fault,) = faults
    assert fault.key == "cat"
    assert bad.name in fault.reason
    assert reason in fault.reason
    assert data[fault.offset : fault.offset + 7] == b"cat.jpg"
    assert data[fault.end : fault.end + 7] == b"dog.jpg"


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        ("/cat.jpg", "/cat", "absolute"),
        ("a/../cat.jpg", "a/../cat", "'..'"),
        ("__meta__/cat.jpg", "__meta__/cat", "webdataset's own"),
        ("README", None, "no key and extension"),
        (".hidden", None, "no key and extension"),
        ("a.b/.hidden.jpg", None, "no key and extension"),
        ("cat.", None, "no key and extension"),
    ],
)
def test_a_name_that_makes_no_sample_is_a_fault(name: str, key: str | None, reason: str, shelf: Shelf) -> None:
    samples, faults = shelf.read(tar_of(entry("ant.jpg", 5), entry(name, 700), entry("ant2.jpg", 5)))
    assert list(samples) == ["ant", "ant2"]
    (fault,) = faults
    assert (fault.key, fault.offset, fault.end) == (key, 1024, 1024 + 1536)
    assert reason in fault.reason


def test_a_key_that_comes_again_is_a_fault_and_the_first_one_stays(shelf: Shelf) -> None:
    samples, faults = shelf.read(tar_of(entry("a.jpg", 5), entry("b.jpg", 5), entry("a.txt", 3), entry("c.jpg", 2)))
    assert list(samples) == ["a", "b", "c"]
    (fault,) = faults
    assert fault.key == "a"
    assert "again" in fault.reason


def test_a_sample_above_the_limit_is_passed_over_unread(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SAMPLE_BYTES", 1000)
    many = [entry(f"d.{number}.png", 400) for number in range(3)]
    samples, faults = shelf.read(tar_of(entry("a.jpg", 1000), entry("b.jpg", 1001), entry("c.jpg", 5), *many))
    assert list(samples) == ["a", "c"]
    assert [fault.key for fault in faults] == ["b", "d"]
    assert "to 1001 bytes" in faults[0].reason
    assert "to 1200 bytes" in faults[1].reason


@pytest.mark.parametrize("located", [False, True])
@pytest.mark.parametrize("format", ["gnu", "pax"])
@pytest.mark.parametrize("harm", ["hole", "cat", "bytes missing", "bytes more"])
def test_every_key_behind_damage_whose_header_is_whole_is_named(
    harm: str, format: str, located: bool, shelf: Shelf
) -> None:
    names = [f"{letter * 3}{LONG if letter in 'bf' else ''}{letter}" for letter in "abcdefgh"]
    data = tar_of(*(entry(f"{name}.jpg", 3000) for name in names), format=FORMATS[format])
    start = data.index(b"ccc")  # its header, within the first MiB as all are
    if harm == "hole":
        data = data[: start - 512] + bytes(512 + 4096) + data[start + 4096 :]
    elif harm == "cat":
        data = data[:start] + bytes(10240 - start % 512) + data[start:]
    elif harm == "bytes missing":
        data = data[: start + 1000] + data[start + 8000 :]  # the rest of c, all of d and some of e
    else:
        data = data[: start + 1000] + bytes(100) + data[start + 1000 :]
    Path(shelf.path).write_bytes(data)
    items = locate_samples(shelf.path) if located else read_shard(shelf.path)
    seen = [item.key for item in items if not isinstance(item, ShardEnd)]
    missing = {"hole": "cd", "cat": "", "bytes missing": "de", "bytes more": ""}[harm]
    assert sorted(key for key in seen if key) == [name for name in names if name[0] not in missing]


@pytest.mark.parametrize("at", range(14))
def test_a_changed_byte_of_a_name_in_an_extended_header_is_noticed(at: int, shelf: Shelf) -> None:
    """What the header itself keeps of a name: in pax the ASCII of it, here all but one letter."""
    data = tar({"ünde": {"jpg": b"1", "txt": b"2"}}, tarfile.PAX_FORMAT)
    record = data.rindex(b" path=\xc3\xbcnde.txt")
    changed = bytearray(data)
    changed[record + at + (at > 5) * 2] ^= 1
    samples, faults = shelf.read(bytes(changed))
    assert samples == {}
    assert any(fault.key == "ünde" for fault in faults)


def test_names_that_no_system_takes_are_faults(shelf: Shelf) -> None:
    def pax(name: str, value: bytes) -> bytes:
        digits = next(n for n in range(1, 9) if len(b"%d path=%s\n" % (10 ** (n - 1), value)) < 10**n)
        body = b"%d path=%s\n" % (len(value) + 7 + digits, value)
        padded = body + bytes(-len(body) % 512)
        return entry("x", len(body), tarfile.XHDTYPE).tobuf() + padded + entry(name, 1).tobuf() + b"1" + bytes(511)

    data = pax("a.jpg", b"a.jp\0g") + pax("b.jpg", b"b" * 5000 + b".jpg") + pax("c.jpg", b"c.jpg")
    samples, faults = shelf.read(data + bytes(1024))
    assert list(samples) == ["c"]
    assert [fault.key for fault in faults] == ["a", "b" * 5000]
    assert "zero byte" in faults[0].reason
    assert "4096 bytes" in faults[1].reason
    assert len(faults[1].reason) < 1500


def test_headers_that_claim_more_than_there_is_cost_neither_memory_nor_time(shelf: Shelf) -> None:
    header = entry("a.jpg", 2**30).tobuf()
    tracemalloc.start()
    samples, faults = shelf.read(header + b"x" * 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == {}
    assert "cut off" in faults[0].reason
    assert peak < 2**26


def test_gnu_tars_own_sparse_files_are_named_and_stepped_over(shelf: Shelf, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.bin", "c.jpg"):
        with open(tmp_path / name, "wb") as file:
            for hole in range(40 if name == "b.bin" else 1):
                file.seek(hole * 65536)
                file.write(b"x" * 4096)
    for format in ("gnu", "pax"):
        status = os.system(f"cd {tmp_path} && tar --format={format} --sparse -cf s.tar a.jpg b.bin c.jpg")
        assert status == 0
        samples, faults = shelf.read((tmp_path / "s.tar").read_bytes())
        assert list(samples) == ["a", "c"]
        assert [fault.key for fault in faults] == ["b"]
        assert "sparse" in faults[0].reason


# ---- the image of a sample


def test_the_image_of_a_sample_is_the_one_member_that_is_an_image() -> None:
    for extension in ("jpg", "jpeg", "png", "webp"):
        assert image_member(Sample("s", "k", {"mask.png": b"", extension: b"", "txt": b""})) == extension


def test_every_key_with_dots_is_named(shelf: Shelf) -> None:
    """webdataset takes all of them for one sample."""
    bare = [entry(f"img.v{number}.jpg", 5) for number in range(4)]
    merged = [entry(name, 5) for name in ("a.jpg", "a.txt", "a.v2.jpg", "a.v2.mask.png", "a.v2.txt")]
    samples, faults = shelf.read(tar_of(*bare, *merged, entry("b.jpg", 5), entry("b.depth.png", 5)))
    assert set(samples) == {"b"}  # a picture with a dot beside one without is a member like any other
    assert [fault.key for fault in faults] == ["img.v0", "img.v1", "img.v2", "img.v3", "a", "a.v2"]
    assert all("cannot contain dots" in fault.reason and "rename it" in fault.reason for fault in faults)


def test_a_sample_of_a_cache_may_have_members_with_dots_and_no_picture(shelf: Shelf) -> None:
    names = ("crop.png", "depth.png", "inpaint.json", "soft_mask.png", "txt")
    samples, faults = shelf.read(tar_of(*(entry(f"{key}.{name}", 5) for key in ("a", "b") for name in names)))
    assert {key: set(members) for key, members in samples.items()} == {"a": set(names), "b": set(names)}
    assert faults == []


def test_a_sample_has_exactly_one_image() -> None:
    with pytest.raises(SampleError, match=r"several images: it has jpg, png; keep one, or name it with image: jpg"):
        image_member(Sample("s", "k", {"jpg": b"", "png": b""}))
    with pytest.raises(SampleError, match=r"no image: it has mask\.png, txt"):
        image_member(Sample("s", "k", {"mask.png": b"", "txt": b""}))


@pytest.mark.parametrize("blocks", [20, 64, 128, 2048])
def test_padding_to_any_of_tars_blocking_factors_is_no_damage(blocks: int, shelf: Shelf) -> None:
    data = tar(SAMPLES)
    data += bytes(-len(data) % (512 * blocks))
    samples, faults = shelf.read(data)
    assert samples == SAMPLES
    assert faults == []


def test_a_name_that_is_no_utf8_and_a_size_that_is_too_small_are_named(shelf: Shelf) -> None:
    latin, lying = entry("caf\udce9.jpg", 5), entry("short.jpg", 5)
    data = bytearray(tar_of(latin, lying, entry("good.jpg", 5)))
    start = data.index(b"short.jpg")
    data[start + 512 + 7] = 1  # the data goes on where its header says it has ended
    samples, faults = shelf.read(bytes(data))
    assert set(samples) == {"good"}
    assert ["is not UTF-8" in faults[0].reason, "continues behind its end" in faults[1].reason] == [True, True]


# ---- where shards come from


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    for number in (2, 0, 1, 10):
        (tmp_path / "shards" / f"{number:04d}.tar").write_bytes(tar(SAMPLES))
    (tmp_path / "shards" / "notes.txt").write_text("not a shard")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[str]:
    files = fsspec.filesystem("memory")
    files.store.clear()
    for name in ("a", "b"):
        files.pipe(f"/bucket/{name}.tar", tar(SAMPLES))
    yield "memory://bucket"
    files.store.clear()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("spec", "numbers"),
    [
        ("shards/{0000..0002}.tar", [0, 1, 2]),
        ("shards/{0002,0000}.tar", [2, 0]),
        ("shards/*.tar", [0, 1, 2, 10]),
        ("shards/000[01].tar", [0, 1]),
        ("shards/001?.tar", [10]),
        ("shards", [0, 1, 2, 10]),
        ("shards/", [0, 1, 2, 10]),
        (Path("shards/0001.tar"), [1]),
        (["shards/0010.tar", Path("shards/0000.tar")], [10, 0]),
    ],
)
def test_shards_are_named_in_every_usual_way(spec: object, numbers: list[int]) -> None:
    assert expand_shards(spec) == [f"shards/{number:04d}.tar" for number in numbers]


def test_urls_of_fsspec_are_expanded_and_read(memory: str, folder: Path) -> None:
    both = ["memory:///bucket/a.tar", "memory:///bucket/b.tar"]
    assert expand_shards(memory) == both
    assert expand_shards(memory + "/*.tar") == both
    assert expand_shards(memory + "/{a,b}.tar") == [memory + "/a.tar", memory + "/b.tar"]
    *items, end = read_shard(both[0])
    assert {item.key: item.members for item in items} == SAMPLES
    data = tar(SAMPLES)
    assert end.identity == shard_identity(both[0])
    assert shard_size(both[0]) == shard_identity(both[0]).size == len(data)
    assert expand_shards(f"file://{folder}/shards/0000.tar") == [f"file://{folder}/shards/0000.tar"]
    assert expand_shards("simplecache::" + memory + "/a.tar") == ["simplecache::" + memory + "/a.tar"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shards/0007.tar", "no such file: shards/0007.tar;"),
        ("shards/{0000..0012}.tar", r"shards/0003.tar, shards/0004.tar, shards/0005.tar … \(9 of the 13"),
        ("shards/x*.tar", "there is no shards/x"),
        ("empty", "empty has no .tar"),
        ([], "empty"),
        ("", "empty"),
        (["shards/0000.tar", "./shards/0000.tar"], "named twice"),
        (["shards/0000.tar", "shards/0000.tar"], "named twice"),
        ("pipe:cat shards/0000.tar", "run a command"),
        ("PIPE:touch ran", "run a command"),
        ("nonsense://x.tar", "nonsense"),
        ("simplecache::nonsense://x.tar", "nonsense"),
        ("shards/{0..}.tar}", "no such file|brace"),
        ("shards/notes.txt", r"does not end in \.tar"),
        ("shards/*", r"notes.txt does not end in \.tar"),
        ("memory://nowhere/x.tar", "no such file"),
        ("memory://nowhere/*.tar", "there is no"),
    ],
)
def test_a_spec_that_cannot_work_is_refused_with_its_mend(spec: object, message: str, folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "0000.tar").write_bytes(b"")
    with pytest.raises(UsageError, match=message) as caught:
        expand_shards(spec)
    assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists()


def test_shards_of_one_name_get_as_many_of_their_folders_in_front_as_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a/part-0/00.tar", "a/part-1/00.tar", "b/part-1/00.tar", "a/part-0/01.tar", "c/part-0-00.tar", "00.tar"]
    for name in names:
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(tar(SAMPLES))
    monkeypatch.chdir(tmp_path / "d")
    named = expand_shards(names)
    assert named == names  # they are read by their paths
    stems = ["a-part-0-00", "a-part-1-00", "b-part-1-00", "01", "c-part-0-00", "d-00"]
    assert list(map(shard_stem, named)) == stems
    for copied in (pickle.loads(pickle.dumps(named)), copy.deepcopy(named)):
        assert copied == names
        assert list(map(shard_stem, copied)) == stems
    # What is not in doubt does not depend on the rest of the list.
    assert list(map(shard_stem, expand_shards([*reversed(names[:2]), "a/part-0/01.tar"]))) == [
        "part-1-00", "part-0-00", "01"
    ]  # fmt: skip
    urls = ["s3://bucket/part-0/00.tar", "gs://bucket/part-1/00.tar", "https://host/x/00.tar?a=/b"]
    assert [shard_stem(shard) for shard in _told_apart(urls)] == ["part-0-00", "part-1-00", "x-00"]
    with pytest.raises(UsageError, match=r"would both be cached as 0\.tar; rename one"):
        _told_apart(["https://host/x/0.tar?part=1", "https://host/x/0.tar?part=2"])
    assert [item.shard for item in read_shard(named[0])] == names[:1] * (len(SAMPLES) + 1)
    assert {shard_stem(item.shard) for item in read_shard(named[0])} == {"a-part-0-00"}


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_folder_is_read_through_its_folders_and_says_what_it_has_instead(
    kind: str, tmp_path: Path, memory: str
) -> None:
    files, root = (fsspec.filesystem("memory"), f"{memory}/in") if kind == "memory" else (None, str(tmp_path))

    def write(name: str, data: bytes) -> str:
        if files is not None:
            files.pipe(f"/bucket/in/{name}", data)
            return f"memory:///bucket/in/{name}"
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
        return f"{tmp_path}/{name}"

    nested = [write(name, tar(SAMPLES)) for name in ("deep/x/1.tar", "deep/y/0.tar", "deep/y/z/1.tar")]
    assert expand_shards(f"{root}/deep") == nested
    assert list(map(shard_stem, expand_shards(f"{root}/deep"))) == ["x-1", "0", "z-1"]
    top = write("deep/2.tar", tar(SAMPLES))
    write("deep/latents/cache.json", b"{}")
    write("deep/latents/2.tar", tar(SAMPLES))
    assert expand_shards(f"{root}/deep") == [top, *nested]
    for ending in (".tar.gz", ".tgz", ".zip"):
        write(f"packed{ending}/0{ending}", b"")
        with pytest.raises(UsageError, match=rf"has no \.tar, but 1 compressed, such as .*0\{ending}; unpack"):
            expand_shards(f"{root}/packed{ending}")


def test_reading_never_runs_a_command(folder: Path) -> None:
    with pytest.raises(ShardError, match="pipe:touch ran"):
        list(read_shard("pipe:touch ran"))
    assert not (folder / "ran").exists()


@pytest.mark.usefixtures("folder")
def test_a_shard_that_has_vanished_is_a_shard_error_with_its_path() -> None:
    for url in ("shards/gone.tar", "shards", "memory://gone.tar"):
        for read in (lambda url: list(read_shard(url)), shard_identity):
            with pytest.raises(ShardError, match=url):
                read(url)
    with pytest.raises(ShardError, match=r"gone\.tar"):
        shard_size("shards/gone.tar")


def test_a_stem_is_the_file_name_without_tar() -> None:
    assert shard_stem("a/b.c/0001.v2.tar") == "0001.v2"
    assert shard_stem("https://host/data/0001.tar?download=true") == "0001"
    assert shard_stem("s3://bucket/0001.tar") == "0001"


@pytest.mark.usefixtures("folder")
def test_identity_is_size_and_sha256() -> None:
    identity = shard_identity("shards/0000.tar")
    assert identity.size == shard_size("shards/0000.tar") == len(tar(SAMPLES))
    assert identity.sha256 == hashlib.sha256(tar(SAMPLES)).hexdigest()


@pytest.mark.parametrize(
    ("keys", "is_mask"),
    [
        (("a", "a_mask"), True),
        (("images/a", "masks/a"), True),
        (("a1", "a1-masklabel"), True),
        (("train/a", "train_masks/a_mask"), True),
        (("gas_mask", "mask/cat"), False),
        (("images/a", "images/b"), False),
    ],
)
def test_a_sample_that_is_the_mask_of_another_is_no_image(keys: tuple[str, str], is_mask: bool, tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "0.tar", {key: {"png": b"x"} for key in keys})
    for items in (read_shard(str(shard)), locate_samples(str(shard))):
        faults = [item for item in items if isinstance(item, Fault)]
        assert [fault.key for fault in faults] == [keys[1]] * is_mask
        said = f"mask of {keys[0]!r} in the same shard is; make it a member of that"
        assert all(said in fault.reason for fault in faults)
