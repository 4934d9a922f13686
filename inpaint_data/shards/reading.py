"""Reading of tar shards into samples: strict, nothing executed.

What went in comes out: every member of a shard belongs to a `Sample` or to a `Fault` that names it. Only directories
and what macOS and pax leave behind (`._*`, `.DS_Store`, `PaxHeader*/`) are skipped.

A tar has a checksum for each header but none for the data and no list of its members. So bytes changed inside a
member are not found here, nor members cut out whole, nor a tail of zeros that is no longer than a tar's own padding.
"""

import glob
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import braceexpand
import fsspec

from inpaint_data.errors import SampleError, UsageError, one_line
from inpaint_data.shards.stores import is_url, open_stream, unreadable
from inpaint_data.shards.tar import BLOCK, Damage, Member, TarStream, members_of_tar

MAX_SAMPLE_BYTES = 2**30  # of all its members; larger samples are not read into memory
MAX_NAME_BYTES = 4096  # of a member: the longest path that systems take
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CACHED = "inpaint.json"  # the member that every sample of a latent cache has

_LEFTOVER = re.compile(r"(.*/)?(\._[^/]*|\.DS_Store)$|(.*/)?PaxHeaders?(\.\d+)?/")
_KEY_AND_EXTENSION = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # webdataset splits at the first dot


@dataclass(frozen=True)
class Sample:
    """The members of one key: extension (all after the first dot, lower case) -> bytes. The key keeps its folder."""

    shard: str
    key: str
    members: dict[str, bytes]
    extent: tuple[int, int] = (0, 0)  # the bytes [offset, end) of the shard that it fills
    offsets: dict[str, int] = field(default_factory=dict)  # of each member's bytes in the shard


@dataclass(frozen=True)
class Fault:
    """An entry of the quarantine list: what cannot be used, why, and the bytes [offset, end) of the shard it fills.

    Or, where it is `on_purpose`, what a filter or a stage of the user's leaves out: counted and listed, not a failure.
    """

    shard: str
    key: str | None
    reason: str
    offset: int | None
    end: int | None
    on_purpose: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))


@dataclass(frozen=True)
class ShardIdentity:
    """The bytes that a shard was made of: their number and their sha256 in hex."""

    size: int
    sha256: str


@dataclass(frozen=True)
class ShardEnd:
    """The end of a shard, after its last sample: which bytes it was, and how many keys it had, samples and faults."""

    shard: str
    identity: ShardIdentity
    keys: int
    decode_seconds: float = 0.0  # what decoding its samples took, all threads together; known behind `examples`


def expand_shards(spec: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """The shards that a brace pattern, a glob, a folder, a path, a URL of fsspec or a list of these names.

    In the order given; globs and folders sorted.

    Raises:
        UsageError: nothing or not everything is there, a shard comes twice, two share their stem, a name is not a .tar,
            or a URL would run a command.
    """
    specs: Sequence[Any] = [spec] if isinstance(spec, str | os.PathLike) or not isinstance(spec, Sequence) else spec
    if strange := [item for item in specs if not isinstance(item, str | os.PathLike)]:
        raise UsageError(f"shards: {strange[0]!r} is not a path; give a path, a pattern, a folder, or a list of those")
    shards = [shard for item in specs for shard in _expand_one(os.fspath(item))]
    if not shards:
        raise UsageError("shards: the list is empty; name at least one shard")
    by_stem: dict[str, str] = {}
    for shard in shards:
        stem = shard_stem(shard)
        if stem in by_stem and _place(by_stem[stem]) == _place(shard):
            raise UsageError(f"shards: {shard} is named twice; name it once")
        if stem in by_stem:
            raise UsageError(f"shards: {by_stem[stem]} and {shard} would both be cached as {stem}.tar; rename one")
        by_stem[stem] = shard
    return shards


def read_shard(url: str) -> Iterator[Sample | Fault | ShardEnd]:
    """A shard's samples in their order, streamed, one in memory at a time.

    At damage (a cut, a changed header, a missing end) all that follows is lost: a Fault covers it up to the file's
    end, from the start of the sample that was being read, since nobody knows whether that one was complete. Behind it
    comes a Fault for each key that headers in the lost part still name.
    A member that cannot be taken (a link, a second `jpg` …) makes its whole sample a Fault: without its mask, say,
    a sample would be another sample.

    The last item, once all of it was read, is its `ShardEnd`.

    Raises:
        ShardError: the file cannot be opened or read.
    """
    keys = 0
    with open_stream(url) as stream:
        source = TarStream(url, stream)
        for item in _samples(source):
            keys += item.key is not None
            yield item
        yield ShardEnd(url, ShardIdentity(source.offset, source.sha256.hexdigest()), keys)


def locate_samples(path: str, shard: str | None = None) -> Iterator[Sample | Fault]:
    """The items of `read_shard`, but with members of no bytes: little more than headers is read of a local shard.

    Args:
        path: of the shard, or of a copy of it.
        shard: its own name, where that is another one.

    Raises:
        ShardError: the file cannot be opened or read.
    """
    with open_stream(path) as stream:
        size = None if is_url(path) else shard_size(path)
        yield from _samples(TarStream(shard or path, stream, size=size), located=True)


def read_sample(shard: str, data: bytes) -> Sample | Fault:
    """The sample that fills an extent, given the bytes of that extent."""
    ends = bytes(2 * BLOCK)  # with these it is a tar of its own, checked like any
    return next(_samples(TarStream(shard, io.BytesIO(data + ends))))


def _samples(source: TarStream, located: bool = False) -> Iterator[Sample | Fault]:
    url = source.url
    group: _Group | None = None
    keys: set[str] = set()
    try:
        for member in members_of_tar(source):
            if _LEFTOVER.match(member.name):
                source.skip(member.padded, str(member))
                continue
            match = _KEY_AND_EXTENSION.fullmatch(member.name)
            if match is None:
                source.skip(member.padded, str(member))
                reason = f"{member} has no key and extension: name it key.extension"
                yield Fault(url, None, reason, member.start, source.offset)
                continue
            key, extension = match[1], match[2].lower()
            if group is None or group.key != key:
                if group is not None:
                    yield from group.close(url, member.start)
                group = _Group(key, member.start)
                if key in keys:
                    group.reason = (
                        f"key {key!r} comes again later in the shard, where its first part was taken as it stood; "
                        "put its members side by side, and give each sample a key of its own"
                    )
                keys.add(key)
            group.take(member, extension, source, located)
        source.expect_only_zeros()
        if group is not None:
            yield from group.close(url, source.start)
    except Damage as damage:
        start, open_key = (group.start, group.key) if group else (source.start, None)
        lost_keys = [match[1] for name in source.names_to_end() if (match := _KEY_AND_EXTENSION.fullmatch(name))]
        yield Fault(url, open_key, str(damage), start, source.offset)
        for key in dict.fromkeys(lost_keys):
            if key not in keys:
                yield Fault(url, key, f"lies behind the damage: {damage}", start, source.offset)


def image_member(sample: Sample) -> str:
    """The extension of a sample's image.

    Raises:
        SampleError: it has none or several.
    """
    images = [extension for extension in sample.members if extension in IMAGE_EXTENSIONS]
    if len(images) == 1:
        return images[0]
    names = ", ".join(sorted(sample.members))
    if images:
        raise SampleError(f"several images: it has members {names}; keep one of {', '.join(images)}")
    if CACHED in sample.members:
        raise SampleError("it is a sample of a latent cache, not an image; read it with cached(), or as a cache")
    raise SampleError(f"no image: it has members {names}, none of them {', '.join(IMAGE_EXTENSIONS)}")


def shard_identity(url: str) -> ShardIdentity:
    """Size and sha256 of a shard, streamed."""
    with open_stream(url) as stream:
        source = TarStream(url, stream)
        return ShardIdentity(source.skip_to_end(), source.sha256.hexdigest())


def shard_size(url: str) -> int:
    """Size of a shard in bytes, without reading it."""
    try:
        if not is_url(url):
            return os.stat(url).st_size
        files, path = fsspec.core.url_to_fs(url)
        return int(files.size(path))
    except Exception as error:  # every file system of fsspec has errors of its own
        raise unreadable(url, error) from error


def shard_stamp(url: str) -> str:
    """A text that changes when the shard does, without reading it: its times and size, or the store's own stamp."""
    try:
        if not is_url(url):
            status = os.stat(url)
            return f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"
        files, path = fsspec.core.url_to_fs(url)
        return str(files.ukey(path))
    except Exception as error:  # as in shard_size
        raise unreadable(url, error) from error


def shard_stem(url: str) -> str:
    """File name without `.tar`, and without what a web address has after ? or #."""
    return _path(url).rstrip("/").rpartition("/")[2].removesuffix(".tar")


@dataclass
class _Group:
    """The sample that is being read."""

    key: str
    start: int
    reason: str | None = None
    members: dict[str, bytes] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    size: int = 0  # of all members

    def take(self, member: Member, extension: str, source: TarStream, located: bool) -> None:
        """Read a member's data, or skip it where the sample is lost anyway."""
        problem = member.problem or name_problem(member.name)
        if extension.startswith("__"):
            problem = "has an extension as webdataset's own fields have them; rename it without the underscores"
        if extension in self.members:
            problem = f"is the sample's second {extension}"
        self.size += member.size
        if self.size > MAX_SAMPLE_BYTES:
            problem = f"brings the sample to {self.size} bytes, above the limit of {MAX_SAMPLE_BYTES}"
        if problem and not self.reason:
            self.reason = f"{member} {problem}"
        at = source.offset
        if not self.reason:
            self.offsets[extension] = at
            try:
                self.members[extension] = b"" if located else source.exactly(member.size, str(member))
            except MemoryError:
                self.reason = f"{member} needs more memory than there is, {member.size} bytes"
        if self.reason:
            self.members.clear()
            source.skip(at + member.padded - source.offset, str(member))
            return
        source.skip(at + member.size - source.offset, str(member))
        if any(source.exactly(member.padded - member.size, str(member))):
            self.reason = f"{member} continues behind its end: the size in its header is wrong"

    def close(self, url: str, end: int) -> Iterator[Sample | Fault]:
        keys = self._keys_with_dots()
        if self.reason:
            yield Fault(url, self.key, self.reason, self.start, end)
        elif keys:
            for key in keys:
                reason = "a key cannot contain dots, webdataset splits at the first one and would merge it with others"
                yield Fault(url, key, f"{reason}; rename it and pack the shard again", self.start, end)
        else:
            yield Sample(url, self.key, self.members, (self.start, end), self.offsets)

    def _keys_with_dots(self) -> list[str]:
        """The keys that were meant, where the members are plainly those of several samples: `v2.jpg` with `v2.txt`, or
        images with dots and none without. A lone `depth.png` beside `jpg` is a member like any other, and so is one
        in a latent cache, whose samples need no image."""
        if CACHED in self.members:
            return []
        stems = {name.rpartition(".")[0] for name in self.members if name.endswith(IMAGE_EXTENSIONS) and "." in name}
        stems = {stem.removesuffix(".mask") for stem in stems} - {"mask"}
        plain = any(name in IMAGE_EXTENSIONS for name in self.members)
        companions = {f"{stem}.{name}" for stem in stems for name in ("txt", "json", "mask.png")}
        if not stems or (plain and not companions & self.members.keys()):
            return []
        keys = [f"{self.key}.{stem}" for stem in sorted(stems)]
        return [self.key, *keys] if plain else keys


def name_problem(name: str) -> str | None:
    """The problem with a member's name, to be said after the name; None where there is none."""
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "is not UTF-8; rename it"
    if "\0" in name:
        return "has a zero byte in its name; rename it"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"has a name of more than {MAX_NAME_BYTES} bytes; rename it"
    if name.startswith("/"):
        return "has an absolute name; pack with relative ones"
    if ".." in name.split("/"):
        return "leads out of its folder with '..'; pack with plain names"
    if re.match(r"__[^/]*__/", name):
        return "is webdataset's own metadata by its name, which readers skip; rename its folder"
    return None


def _path(url: str) -> str:
    return re.split("[?#]", url)[0] if url.startswith(("http://", "https://")) else url


def _place(shard: str) -> str:
    return shard if is_url(shard) else os.path.realpath(shard)


def _expand_one(spec: str) -> list[str]:
    if not spec.strip():
        raise UsageError("shards: a name is empty; name a .tar, a folder, a glob or a brace pattern")
    if spec.strip().lower().startswith("pipe:"):
        raise UsageError(f"shards: {spec!r} would run a command; name a file or a URL that fsspec opens, such as s3://")
    if is_url(spec):
        _check_protocols(spec)
    try:
        names = list(braceexpand.braceexpand(spec)) if "{" in spec and not _is_there(spec) else [spec]
    except ValueError as error:
        raise UsageError(f"shards: {spec!r} is not a brace pattern: {error}; write it like {{0000..0012}}") from error
    matches = [_matches(name) for name in names]
    missing = [name for name, shards in zip(names, matches, strict=True) if not shards]
    if missing:
        listed = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        share = f" ({len(missing)} of the {len(names)} in {spec})" if len(names) > 1 else ""
        raise UsageError(f"shards: no such file: {listed}{share}; correct the name, or make the shards first")
    return [shard for shards in matches for shard in shards]


def _check_protocols(url: str) -> None:
    for protocol in re.findall(r"(?:^|::)([A-Za-z][\w+.-]*)(?=::|://)", url):
        try:
            fsspec.get_filesystem_class(protocol)
        except (ValueError, ImportError) as error:
            raise UsageError(f"shards: {url} cannot be opened: {error}; see fsspec for the protocol's name") from error


def _is_there(name: str) -> bool:
    if not is_url(name):
        return os.path.exists(name)
    files, path = fsspec.core.url_to_fs(name)
    return bool(files.exists(path))


def _matches(name: str) -> list[str]:
    """One file, the tars of a folder, or what a glob finds; nothing where a file is missing."""
    remote = is_url(name)
    can_list = not name.startswith(("http://", "https://")) and "::" not in name  # the web's ? is not a glob
    try:
        files, path = fsspec.core.url_to_fs(name) if remote else (fsspec.filesystem("file"), name)
        if files.isfile(path):
            shards = [name]
        elif can_list and (files.isdir(path) or any(character in path for character in "*?[")):
            pattern = os.path.join(glob.escape(path), "*.tar") if files.isdir(path) else path
            if remote:
                shards = sorted(files.unstrip_protocol(path) for path in files.glob(pattern))
            else:
                shards = sorted(glob.glob(pattern, recursive=True))
            if not shards:
                raise UsageError(f"shards: there is no {pattern}; name a folder or a pattern that has shards")
        else:
            shards = []
    except UsageError:
        raise
    except Exception as error:  # as in TarStream.read
        raise UsageError(
            f"shards: {name} cannot be looked up: {error}; check the address and its credentials"
        ) from error
    for shard in shards:
        if not _path(shard).endswith(".tar"):
            raise UsageError(f"shards: {shard} does not end in .tar; unpack .tar.gz with gunzip, leave other files out")
    return shards
