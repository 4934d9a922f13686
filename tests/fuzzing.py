"""Fuzzing of shards and caches: run as a process of its own, which has little memory and watches itself.

`python fuzzing.py FOLDER KIND,FIRST,COUNT,SECONDS ...` tries the seeds from FIRST on, until COUNT of them were tried or
the time is over, and prints how many that were. At the first one that ends in any other way than it should, it prints
its seed and fails.
"""

import faulthandler
import io
import json
import os
import resource
import shutil
import struct
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pycocotools.mask as coco
from conftest import Pooling
from flat import cache_latents
from PIL import Image

from inpaint_data import Autoencoder, LatentCache, index_cache, verify_cache
from inpaint_data.errors import InpaintDataError
from inpaint_data.latent_cache.encodings import json_bytes
from inpaint_data.latent_cache.format import fingerprint
from inpaint_data.shards.reading import ShardEnd, read_shard

MEMORY = 2**30  # beyond what the libraries take
SECONDS_OF_A_CASE = 60
SIZE = (40, 48)  # of every picture
Members = list[tuple[str, bytes]]
EXECUTES = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")


# ---- What is true of every case


class Watch:
    """Sees what this process opens and starts, through Python's own audit events."""

    def __init__(self) -> None:
        self.allowed: list[Path] = []
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.allowed:
            return
        if event in EXECUTES:
            self.seen.append(f"{event} {arguments}")
        elif event == "open" and isinstance(arguments[0], str | bytes) and self._writes(arguments):
            self._check(event, os.fsdecode(arguments[0]))
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.link", "os.symlink", "os.truncate"):
            for path in arguments[:2]:
                if isinstance(path, str | bytes):
                    self._check(event, os.fsdecode(path))

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        _, mode, flags = arguments
        return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def _check(self, event: str, path: str) -> None:
        if not any(Path(os.path.abspath(path)).is_relative_to(folder) for folder in self.allowed):
            self.seen.append(f"{event} {path}")


def limit_memory() -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def one_line(error: InpaintDataError) -> None:
    assert str(error), "an error without words"
    assert "\n" not in str(error), str(error)
    assert len(str(error)) < 20_000, f"an error of {len(str(error))} letters"


# ---- Bytes


def mutated(data: bytes, rng: Random) -> bytes:
    """The bytes with one to three things done to them that disks, networks and people do."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        unit = rng.choice([1, 512])

        def place() -> int:
            return rng.randrange(len(changed) + 1) // unit * unit  # noqa: B023 - called within this round

        at, other = sorted((place(), place()))
        length = rng.choice([1, 4, 64, 512, 513, 4096])
        kind = rng.choice(["flip", "cut", "zero", "random", "swap", "again", "delete", "junk", "byte", "number"])
        if kind == "flip":
            for _ in range(rng.randint(1, 20)):
                if changed:
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del changed[other:]
        elif kind == "zero":
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        elif kind == "random":
            changed[at : at + length] = rng.randbytes(len(changed[at : at + length]))
        elif kind == "swap":
            changed[at : at + length], changed[other : other + length] = (
                changed[other : other + length],
                changed[at : at + length],
            )
        elif kind == "again":
            changed[at:at] = changed[other : other + rng.choice([512, 1024, 4096])]
        elif kind == "delete":
            del changed[at : at + length]
        elif kind == "junk":
            changed[at:at] = rng.randbytes(length)
        elif kind == "byte" and at < len(changed):
            changed[at] = rng.choice([0, 1, 0x20, 0x2F, 0x7F, 0x80, 0xFF])
        elif kind == "number":
            changed[at : at + 4] = rng.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80"])
    return bytes(changed)


def any_json(rng: Random, depth: int = 0) -> Any:
    """Some value of JSON: often one that a program has not thought of."""
    kind = rng.choice(["number", "number", "odd", "text", "word", "list", "dict", "deep"])
    if kind == "number" or depth > 3:
        return rng.choice([0, 1, -1, 7, 40, 48, 1920, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400, 10**4299])
    if kind == "odd":
        return rng.choice([float("nan"), float("inf"), -float("inf"), 1e308, -0.0, 0.5, None, True, False])
    if kind == "text":
        return rng.choice(["", "0", "x" * 2000, "\ud800", "\0", "../x", "ünï", "PP`0o1", "o" * 300, "\x1b[31m\n"])
    if kind == "word":
        return rng.choice(["size", "counts", "segmentation", "bbox", "annotations", "offset", "keys", "latents.npy"])
    if kind == "list":
        return [any_json(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 4, 6]))]
    if kind == "deep":
        value: Any = 1
        for _ in range(rng.choice([10, 200])):
            value = [value] if rng.random() < 0.5 else {"segmentation": value}
        return value
    words = ["size", "counts", "segmentation", "bbox", "annotations", "offset", "end", "key", "reason"]
    return {rng.choice(words): any_json(rng, depth + 1) for _ in range(rng.choice([0, 1, 3]))}


def with_a_strange_value(content: Any, rng: Random) -> Any:
    """JSON with one of its values replaced, left out, or doubled."""
    places: list[tuple[Any, Any]] = []
    todo = [content]
    while todo:
        value = todo.pop()
        if isinstance(value, dict | list):
            inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
            places += [(value, name) for name, _ in inner]
            todo += [item for _, item in inner]
    if not places or rng.random() < 0.03:
        return any_json(rng)
    owner, name = rng.choice(places)
    kind = rng.choice(["replace", "replace", "replace", "leave out", "double"])
    if kind == "leave out":
        del owner[name]
    elif kind == "double" and isinstance(owner, list):
        owner.insert(name, owner[name])
    else:
        owner[name] = any_json(rng)
    return content


# ---- Shards


def picture(kind: str, rng: Random, **options: Any) -> bytes:
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(SIZE[::-1]).save(file, kind, **options)
    return file.getvalue()


def mask(rng: Random) -> bytes:
    pixels = np.zeros(SIZE, np.uint8)
    pixels[rng.randrange(20) :, rng.randrange(20) :] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def annotations() -> dict[str, Any]:
    height, width = SIZE
    packed = coco.encode(np.asfortranarray(np.eye(height, width, dtype=np.uint8)))["counts"].decode()
    return {
        "annotations": [
            {"segmentation": {"size": list(SIZE), "counts": [100, 50, height * width - 150]}},
            {"segmentation": {"size": list(SIZE), "counts": packed}},
            {"segmentation": [[1, 1, 30, 2, 20, 30], [5.5, 5.5, 9, 8, 7, 12]]},
            {"bbox": [3, 4, 20, 10]},
        ]
    }


def whole_samples(rng: Random) -> dict[str, Members]:
    """Key -> its members: every kind of picture, mask and text."""
    text = ("txt", "a caption, ünicode".encode())
    described = ("json", json.dumps(annotations()).encode())
    return {
        "a": [("jpg", picture("JPEG", rng)), text, ("mask.png", mask(rng))],
        "b": [("png", picture("PNG", rng)), text, described],
        "ünï/c": [("webp", picture("WEBP", rng, lossless=rng.random() < 0.5)), described],
        "a long folder/" * 8 + "d": [("jpg", picture("JPEG", rng, progressive=True)), text, described],
        "e": [("jpg", picture("JPEG", rng)), ("mask.0.png", mask(rng)), ("mask.1.png", mask(rng)), ("cls", b"7")],
        "f": [("png", picture("PNG", rng)), text, described, ("mask.png", mask(rng))],
    }


def header(name: bytes, size: int, kind: bytes = b"0") -> bytes:
    """A header as tar has it, with any bytes for a name."""
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    block[0:100] = name[:100].ljust(100, b"\0")
    block[124:136], block[148:156], block[156:157] = b"%011o\0" % size, b" " * 8, kind
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def stored(name: bytes, data: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


def pax(fields: dict[str, bytes]) -> bytes:
    body = b""
    for keyword, value in fields.items():
        record = b" %s=%s\n" % (keyword.encode(), value)
        length = len(record)
        while length != len(record) + len(str(length)):
            length = len(record) + len(str(length))
        body += str(length).encode() + record
    return stored(b"PaxHeader", body, b"x")


def tar(samples: dict[str, Members], format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for key, members in samples.items():
            for extension, data in members:
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


NAMES = [
    *(b"../../x.jpg", b"/tmp/x.jpg", b"a.jpg", b"A.JPG", b"x", b".jpg", b"x.", b"x/.jpg", b"__k__/x.jpg", b"x.__key__"),
    *(b"x.latents.npy", b"x.inpaint.json", b"x.mask.pbm", b"x.v1.jpg", b"x.mask.%s.png" % (b"9" * 5000)),
    *(
        b"x\0y.jpg",
        b"\xff\xfe.jpg",
        b"x\n\x1b[31m.jpg",
        b"x" * 300 + b".jpg",
        b"d/" * 3000 + b"x.jpg",
        b" .jpg",
        b"-.jpg",
    ),
]


def strange_members(rng: Random) -> bytes:
    """Members that no writer writes: raw names, PAX fields, links, sizes that lie."""
    pieces = []
    for _ in range(rng.randint(1, 3)):
        name, data = rng.choice(NAMES), picture("PNG", rng)
        kind = rng.choice(["plain", "plain", "pax", "field", "long", "type"])
        if kind == "plain":
            pieces.append(stored(name, data))
        elif kind == "pax":
            pieces.append(pax({"path": name}) + stored(name, data))
        elif kind == "field":
            word = rng.choice(
                ["size", "path", "GNU.sparse.name", "GNU.sparse.major", "linkpath", "mtime", "", "pat", "x"]
            )
            value = rng.choice([b"", b"0", b"-1", b"99999999999999999999", b"%d" % len(data), b"1" * 30, name, b"\0"])
            pieces.append(pax({word: value, "path": name}) + stored(name, data))
        elif kind == "long":
            pieces.append(stored(b"././@LongLink", name + b"\0", b"L") + stored(name, data))
        else:
            pieces.append(
                stored(name, data, rng.choice([b"1", b"2", b"3", b"5", b"6", b"7", b"S", b"K", b"g", b"V", b"\0"]))
            )
    return b"".join(pieces)


def strange_samples(rng: Random) -> dict[str, Members]:
    """Whole samples but for one or two members, whose content is strange."""
    samples = whole_samples(rng)
    for _ in range(rng.choice([1, 2])):
        key = rng.choice(list(samples))
        number = rng.randrange(len(samples[key]))
        extension, data = samples[key][number]
        if extension == "json":
            data = json.dumps(with_a_strange_value(annotations(), rng)).encode()
            if rng.random() < 0.3:
                data = rng.choice([b"[" * 100_000, b'{"a":' * 5000, b"9" * 5000, b"\xff", data[:-5], b"{}", b"null"])
        elif extension == "txt":
            data = rng.choice([b"", b"\xff\xfe", b"\0", b"x" * 100_000, b"\x1b]0;x\x07\r\n", "\ufeff".encode()])
        else:
            data = mutated(data, rng)
        samples[key][number] = (extension, data)
        if rng.random() < 0.2:
            samples[key].insert(number, rng.choice(samples[key]))
    return samples


def png(height: int, width: int, depth: int, colour: int, rows: bytes, before: bytes = b"") -> bytes:
    """A PNG of any size whose pixels are `rows`, packed as small as can be."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)) + before
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def scans(count: int) -> bytes:
    """A JPEG of 4 megapixels with that many empty scans behind its own."""
    file = io.BytesIO()
    Image.new("RGB", (2048, 2048)).save(file, "JPEG", progressive=True)
    table = b"\xff\xc4\0\x14\x10\x01" + bytes(15) + b"\0"
    scan = table + b"\xff\xda\0\x08\x01\x01\0\x01\x3f\0" + bytes(256 * 256 // 8)
    return file.getvalue()[:-2] + scan * count + b"\xff\xd9"


def flat_webp() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16000, 5000)).save(file, "WEBP", lossless=True, quality=0, method=0)
    return file.getvalue()


def killers(rng: Random) -> dict[str, Callable[[], Members]]:
    """Samples that once took all memory, minutes, or the job with them; most of them are small."""
    image = ("png", picture("PNG", rng))

    def described(annotation: Any) -> Members:
        return [image, ("json", json.dumps({"annotations": [annotation]}).encode())]

    return {
        "runs of 4300 digits": lambda: described({"segmentation": {"size": list(SIZE), "counts": [10**4299] * 20}}),
        "200,000 corners": lambda: described({"segmentation": [[0, 0, 47, 39] * 100_000]}),
        "as many polygons": lambda: described({"segmentation": [[0, 0, 47, 39, 47, 0]] * 100_000}),
        "as many objects": lambda: [image, ("json", json.dumps([{"bbox": [0, 0, 0, 0]}] * 100_000).encode())],
        "deep json": lambda: [image, ("json", b"[" * 10**6)],
        "a number of 5000 digits": lambda: [image, (f"mask.{'9' * 5000}.png", mask(rng))],
        "a thousand scans": lambda: [("jpg", scans(1000))],
        "80 megapixels of 16 bits": lambda: [("png", png(9000, 8900, 16, 0, bytes(9000 * (1 + 2 * 8900))))],
        "80 megapixels of WEBP": lambda: [("webp", flat_webp())],
        "a mask of 80 megapixels": lambda: [image, ("mask.png", png(9000, 8900, 1, 0, bytes(9000 * (1 + 1113))))],
        "a text of a gigabyte": lambda: [("png", png(8, 8, 8, 0, bytes(72), text_bomb()))],
    }


def text_bomb() -> bytes:
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(1024)) + packer.flush()
    body = b"Comment\0\0" + packed
    return struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))


def killer_case(folder: Path, rng: Random, vae: Autoencoder, watch: Watch, name: str, members: Members) -> None:
    data = tar({"killer": members} | whole_samples(rng), tarfile.GNU_FORMAT)
    check_shard(folder, data, {"masks": "object", "resolution": 16}, vae, watch)
    quarantined = json.loads((folder / "out" / "0.json").read_bytes())["quarantined"]
    assert [entry["key"] for entry in quarantined] == ["killer"], (name, quarantined)


def shard_case(folder: Path, rng: Random, vae: Autoencoder, watch: Watch) -> None:
    """Any bytes of a shard are cached or named, the job ends well, and a second start changes nothing."""
    samples = whole_samples(rng)
    data = tar(samples, rng.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    kind = rng.choice(["bytes", "bytes", "members", "samples", "samples"])
    expected = set(samples)
    if kind == "bytes":
        before, data = data, mutated(data, rng)
        expected = keys_in_whole_headers(before, data)
    elif kind == "members":
        at = len(data) if rng.random() < 0.2 else rng.choice([0, data.index(b"b.png"), data.index(b"f.png")])
        data = data[:at] + strange_members(rng) + data[at:]
    else:
        data = tar(strange_samples(rng), tarfile.GNU_FORMAT)
    settings = {
        "masks": rng.choice(["object", "object", "sample", "mixture"]),
        "resolution": 16,
        "crop": rng.choice(["center", "random", "mask"]) if kind == "samples" else "center",
        "variants": rng.choice([1, 2]),
        "batch_size": 4,
        "carry_image": rng.choice(["none", "crop", "original"]),
    }
    if settings["crop"] == "mask" and settings["masks"] == "mixture":
        settings["crop"] = "random"
    named = check_shard(folder, data, settings, vae, watch)
    assert expected <= named, expected - named


def keys_in_whole_headers(before: bytes, after: bytes) -> set[str]:
    """The keys of a tar that a changed one still names, in headers that are where they were."""
    with tarfile.open(fileobj=io.BytesIO(before)) as archive:
        members = archive.getmembers()
    whole = [
        info for info in members if before[info.offset : info.offset_data] == after[info.offset : info.offset_data]
    ]
    return {str(Path(info.name).with_name(Path(info.name).name.split(".")[0])) for info in whole}


def check_shard(folder: Path, data: bytes, settings: dict[str, Any], vae: Autoencoder, watch: Watch) -> set[Any]:
    """Cache a shard of these bytes twice, and check that all is accounted for. Returns the keys in the sidecar."""
    (folder / "in").mkdir()
    (folder / "in" / "0.tar").write_bytes(data)
    settings = settings | {"max_bad_fraction": 1.0, "num_workers": 2, "vae": vae}
    inputs, out = str(folder / "in"), folder / "out"
    watch.allowed = [out]
    cache_latents(inputs, str(out), **settings)
    first = contents(out)
    summary = cache_latents(inputs, str(out), **settings)
    assert (len(summary.plan.done), len(summary.plan.todo)) == (1, 0)
    watch.allowed = []
    assert contents(out).keys() == first.keys()
    assert all(first[name] == data for name, data in contents(out).items() if not name.startswith("."))
    verification = verify_cache(out, against=inputs)
    assert verification.ok, verification.problems
    sidecar = json.loads(first["0.json"])
    listed = [*sidecar["quarantined"], *sidecar["filtered"]]
    assert all(entry["reason"] and "\n" not in entry["reason"] for entry in listed)
    named = {*sidecar["keys"], *(entry["key"] for entry in listed)}
    items = read_shard(str(folder / "in" / "0.tar"))
    assert {item.key for item in items if not isinstance(item, ShardEnd)} == named
    if sidecar["keys"]:
        read_all(out)
    return named


# ---- Caches


def read_all(root: Path) -> None:
    cache = LatentCache(root)
    for batch in cache.batches(3, shuffle=False):
        cache.__getitems__(batch)


def signed(name: str, content: Any) -> bytes:
    """The bytes of a changed sidecar or `cache.json`, its hash made good again, as a forger would."""
    if not isinstance(content, dict):
        return json.dumps(content).encode()
    if name == "cache.json":
        content["fingerprint"] = fingerprint(content.get("settings"))
        return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"
    content.pop("sha256", None)
    return json_bytes(content | {"sha256": sha256(json_bytes(content)).hexdigest()})


def cache_case(folder: Path, rng: Random, vae: Autoencoder, watch: Watch, whole: Path) -> None:
    """A cache in which one file is strange is read, or refused in one line, by everything that reads caches."""
    out = folder / "out"
    shutil.copytree(whole / "out", out)
    name = rng.choice(["cache.json", "0.json", "0.json", "1.json", "0.tar", "0.tar", ".index"])
    before = (out / name).read_bytes()
    may_be_any = name == ".index"  # which is never believed, and so needs no verification
    forged = name.endswith(".json") and rng.random() < 0.7
    after = signed(name, with_a_strange_value(json.loads(before), rng)) if forged else mutated(before, rng)
    (out / name).write_bytes(after)
    if rng.random() < 0.2:
        (out / rng.choice(["0.json", "cache.json"])).unlink()
    settings = {"masks": "boxes", "resolution": 16, "batch_size": 4, "max_bad_fraction": 1.0, "vae": vae}
    actions: dict[str, Callable[[], Any]] = {
        "read": lambda: read_all(out),
        "verify": lambda: verify_cache(out),
        "verify against": lambda: verify_cache(out, against=str(whole / "in")),
        "index": lambda: index_cache(out, vae),
        "cache": lambda: cache_latents(str(whole / "in"), str(out), **settings),
        "cache again": lambda: cache_latents(str(whole / "in"), str(out), **settings),
    }
    for name, action in actions.items():
        watch.allowed = [out]
        try:
            result = action()
        except InpaintDataError as error:
            one_line(error)
        except Exception as error:
            raise AssertionError(f"{name} raised {type(error).__name__}: {error}") from error
        else:
            if name == "verify" and not (forged or may_be_any) and after != before and len(contents(out)) == 7:
                assert not result.ok, "a changed cache verifies"
        watch.allowed = []


def whole_cache(folder: Path, vae: Autoencoder) -> Path:
    (folder / "in").mkdir(parents=True)
    for number in range(2):
        samples = whole_samples(Random(number))
        (folder / "in" / f"{number}.tar").write_bytes(tar(samples, tarfile.GNU_FORMAT))
    settings = {"masks": "boxes", "resolution": 16, "batch_size": 4, "vae": vae}
    cache_latents(str(folder / "in"), str(folder / "out"), **settings)
    return folder


def cases(kind: str, folder: Path, vae: Autoencoder, watch: Watch, count: int) -> Callable[[Path, Random], None]:
    if kind == "shards":
        return lambda place, rng: shard_case(place, rng, vae, watch)
    if kind == "killers":
        makers = islice(killers(Random(0)).items(), count)
        samples = iter([(name, make()) for name, make in makers])
        return lambda place, rng: killer_case(place, rng, vae, watch, *next(samples))
    whole = whole_cache(folder / "whole", vae)
    return lambda place, rng: cache_case(place, rng, vae, watch, whole)


def fuzz(kind: str, folder: Path, seeds: range, seconds: float, case: Callable[[Path, Random], None]) -> int:
    """How many seeds were tried in that time."""
    started = time.monotonic()
    for tried, seed in enumerate(seeds):
        if time.monotonic() - started > seconds:
            return tried
        faulthandler.dump_traceback_later(SECONDS_OF_A_CASE, exit=True)
        place = folder / f"{kind}-{seed}"
        place.mkdir()
        try:
            case(place, Random(f"{kind} {seed}"))
        except BaseException:
            print(f"{kind}: seed {seed} fails", flush=True)  # noqa: T201
            raise
        assert {path.name for path in place.iterdir()} <= {"in", "out"}
        shutil.rmtree(place)
        faulthandler.cancel_dump_traceback_later()
    return len(seeds)


def main(folder: Path, *runs: str) -> None:
    os.chdir(folder)
    vae, watch = Autoencoder(Pooling()), Watch()
    plans = []
    for run in runs:
        kind, first, count, seconds = run.split(",")
        seeds = range(int(first), int(first) + int(count))
        plans.append((kind, seeds, float(seconds), cases(kind, folder, vae, watch, len(seeds))))
    limit_memory()
    for kind, seeds, seconds, case in plans:
        tried = fuzz(kind, folder, seeds, seconds, case)
        assert not watch.seen, watch.seen
        print(f"{kind}: {tried}")  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
