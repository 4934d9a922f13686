"""From a tar shard to samples: strict, nothing executed.

What went in comes out: every member of a shard belongs to a `Sample` or to a `Fault` that names it. Only directories
and what macOS and pax leave behind (`._*`, `.DS_Store`, `PaxHeader*/`) are passed over.

A tar has a checksum for each header but none for the data, so bytes changed inside a member are not found here.
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import braceexpand
import fsspec

from inpaint_data.errors import SampleError, ShardError, UsageError

BLOCK = 512
RECORD = 20 * BLOCK
MAX_MEMBER_BYTES = 2**30  # larger members are not read into memory
MAX_EXTENDED_HEADER_BYTES = 2**20
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

_LEFTOVER = re.compile(r"(.*/)?(\._[^/]*|\.DS_Store)$|(.*/)?PaxHeaders?(\.\d+)?/")
_KEY_AND_EXTENSION = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # webdataset splits at the first dot


@dataclass(frozen=True)
class Sample:
    """The members of one key: extension (all after the first dot, lower case) -> bytes. The key keeps its folder."""

    shard: str
    key: str
    members: dict[str, bytes]


@dataclass(frozen=True)
class Fault:
    """An entry of the quarantine list: what cannot be used, why, and the bytes [offset, end) of the shard it fills."""

    shard: str
    key: str | None
    reason: str
    offset: int | None
    end: int | None


@dataclass(frozen=True)
class ShardIdentity:
    """Which bytes a shard was made of: their number and their sha256 in hex."""

    size: int
    sha256: str


def expand_shards(spec: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """The shards that a brace pattern, a glob, a folder, a path, a URL of fsspec or a list of these names.

    In the order given; globs and folders sorted.

    Raises:
        UsageError: nothing or not everything is there, a shard comes twice, two share their stem, a name is no .tar,
            or a URL would run a command.
    """
    specs = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    shards = [shard for one in specs for shard in _expand_one(os.fspath(one))]
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


def read_shard(url: str) -> Iterator[Sample | Fault]:
    """A shard's samples in their order, streamed, one in memory at a time.

    At damage (a cut, a changed header, a missing end) all that follows is lost: one last Fault covers it up to the
    file's end, from the start of the sample that was being read, since nobody knows whether that one was complete.
    A member that cannot be taken (a link, a second `jpg` …) makes its whole sample a Fault: without its mask, say,
    a sample would be another sample.

    Raises:
        ShardError: the file cannot be opened or read.
    """
    with _open(url) as stream:
        source = _Source(url, stream)
        group: _Group | None = None
        keys: set[str] = set()
        try:
            for member in _members(source):
                if _LEFTOVER.match(member.name):
                    source.skip(member.padded, str(member))
                    continue
                match = _KEY_AND_EXTENSION.fullmatch(member.name)
                if match is None:
                    source.skip(member.padded, str(member))
                    reason = f"member {member.name!r} has no key and extension: name it key.extension"
                    yield Fault(url, None, reason, member.start, source.offset)
                    continue
                key, extension = match[1], match[2].lower()
                if group is None or group.key != key:
                    if group is not None:
                        yield group.close(url, member.start)
                    group = _Group(key, member.start)
                    if key in keys:
                        group.reason = f"key {key!r} comes again later in the shard; put its members side by side"
                    keys.add(key)
                group.take(member, extension, source)
            source.expect_only_zeros()
            if group is not None:
                yield group.close(url, source.start)
        except _Damage as damage:
            start, reading = (group.start, group.key) if group else (source.start, None)
            yield Fault(url, reading, str(damage), start, source.skip_to_end())


def image_member(sample: Sample) -> str:
    """The extension of a sample's image.

    Raises:
        SampleError: it has none or several.
    """
    found = [extension for extension in sample.members if extension in IMAGE_EXTENSIONS]
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(sample.members))
    if found:
        raise SampleError(f"several images: it has members {names}; keep one of {', '.join(found)}")
    reason = f"no image: it has members {names}, none of them {', '.join(IMAGE_EXTENSIONS)}"
    dotted = [name for name in sorted(sample.members) if name.endswith(IMAGE_EXTENSIONS) and name != "mask.png"]
    if dotted:
        reason += (
            f"; a key cannot contain dots, webdataset splits at the first one: "
            f"rename {sample.key}.{dotted[0]} and pack the shard again"
        )
    raise SampleError(reason)


def shard_identity(url: str) -> ShardIdentity:
    """Size and sha256 of a shard, streamed."""
    digest, size = hashlib.sha256(), 0
    with _open(url) as stream:
        source = _Source(url, stream)
        while piece := source.read(2**20):
            digest.update(piece)
            size += len(piece)
    return ShardIdentity(size, digest.hexdigest())


def shard_size(url: str) -> int:
    """Size of a shard in bytes, without reading it."""
    try:
        if not _is_url(url):
            return os.stat(url).st_size
        files, path = fsspec.core.url_to_fs(url)
        return int(files.size(path))
    except Exception as error:  # every file system of fsspec has errors of its own
        raise _unreadable(url, error) from error


def shard_stem(url: str) -> str:
    """File name without `.tar`; what a web address has after ? or # is no part of it."""
    return _path(url).rstrip("/").rpartition("/")[2].removesuffix(".tar")


class _Damage(Exception):
    """The tar cannot be followed any further."""


@dataclass
class _Source:
    """A stream that knows where it is and reads all that is asked for, or tells that it cannot."""

    url: str
    stream: IO[bytes]
    offset: int = 0
    start: int = 0  # where the member that is being read began: its first header

    def read(self, count: int) -> bytes:
        """`count` bytes, fewer only at the end of the file."""
        pieces = []
        while count > 0:
            try:
                piece = self.stream.read(count)
            except Exception as error:  # those of aiohttp, botocore … are no OSError
                raise _unreadable(self.url, error) from error
            if not piece:
                break
            pieces.append(piece)
            count -= len(piece)
            self.offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def exactly(self, count: int, what: str) -> bytes:
        data = self.read(count)
        if len(data) < count:
            raise _Damage(f"the shard is cut off at byte {self.offset}, inside {what}")
        return data

    def skip(self, count: int, what: str) -> None:
        while count > 0:
            count -= len(self.exactly(min(count, 2**20), what))

    def skip_to_end(self) -> int:
        while self.read(2**20):
            pass
        return self.offset

    def expect_only_zeros(self) -> None:
        """Writers pad an archive to a full record; more than that is a hole that merely looks like its end."""
        while piece := self.read(2**20):
            if piece.strip(b"\0"):
                raise _Damage(
                    f"there is data after the zero blocks at byte {self.start}: a hole, or tars joined by cat"
                )
        if self.offset > -(-(self.start + 2 * BLOCK) // RECORD) * RECORD:
            raise _Damage(f"all is zero from byte {self.start} on, far beyond a tar's padding: an unfinished download")


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    start: int
    problem: str | None

    @property
    def padded(self) -> int:
        return _padded(self.size)

    def __str__(self) -> str:
        return f"member {self.name!r}"


@dataclass
class _Group:
    """The sample that is being read."""

    key: str
    start: int
    reason: str | None = None
    members: dict[str, bytes] = field(default_factory=dict)

    def take(self, member: _Member, extension: str, source: _Source) -> None:
        """Read a member's data, or pass over it where the sample is lost anyway."""
        problem = member.problem or name_problem(member.name)
        if extension in self.members:
            problem = f"is the sample's second {extension}"
        if member.size > MAX_MEMBER_BYTES:
            problem = f"has {member.size} bytes, above the limit of {MAX_MEMBER_BYTES}"
        if problem and not self.reason:
            self.reason = f"{member} {problem}"
        if self.reason:
            self.members.clear()
            source.skip(member.padded, str(member))
        else:
            self.members[extension] = source.exactly(member.size, str(member))
            source.skip(member.padded - member.size, str(member))

    def close(self, url: str, end: int) -> Sample | Fault:
        if self.reason:
            return Fault(url, self.key, self.reason, self.start, end)
        return Sample(url, self.key, self.members)


def name_problem(name: str) -> str | None:
    """What is wrong with a member's name, to be said after the name; None where nothing is."""
    if name.startswith("/"):
        return "has an absolute name; pack with relative ones"
    if ".." in name.split("/"):
        return "leads out of its folder with '..'; pack with plain names"
    if re.match(r"__[^/]*__/", name):
        return "is webdataset's own metadata by its name, which readers pass over; rename its folder"
    return None


_REGULAR = (b"0", b"\0", b"7")  # typeflags: today's, the one before ustar, "contiguous"
_WITHOUT_DATA = {
    b"1": "is a hard link; pack the file itself",
    b"2": "is a symbolic link; pack with tar --dereference",
    b"3": "is a device",
    b"4": "is a device",
    b"6": "is a named pipe",
}


def _members(source: _Source) -> Iterator[_Member]:
    """Every file of the archive up to its two closing zero blocks; whoever asks for the next has read its data.

    Formats: v7, ustar, pax and GNU, as POSIX.1 (pax) and GNU tar's manual (Basic Tar Format) lay them out.
    """
    everywhere: dict[str, str] = {}  # a global pax header holds for all that follows
    here: dict[str, str] = {}
    long_name = ""
    while header := _header(source):
        kind, size = header[156:157], _number(header[124:136])
        if kind in (b"x", b"X", b"g", b"L", b"K"):
            if size > MAX_EXTENDED_HEADER_BYTES:
                raise _Damage(f"the extended header before byte {source.offset} claims {size} bytes")
            data = source.exactly(_padded(size), "an extended header")[:size]
            if kind == b"L":
                long_name = _text(data)
            elif kind == b"g":
                everywhere |= _pax_records(data)
            elif kind != b"K":  # that is the long target of a link
                here = _pax_records(data)
            continue
        pax = everywhere | here
        name = pax.get("GNU.sparse.name") or pax.get("path") or long_name or _ustar_name(header)
        if pax.get("size"):
            size = _decimal(pax["size"])
        problem = _WITHOUT_DATA.get(kind)
        if kind == b"S" or any(keyword.startswith("GNU.sparse") for keyword in pax):
            problem = "is a sparse file; pack with tar without --sparse"
            more = kind == b"S" and header[482]
            while more:
                more = source.exactly(BLOCK, "a sparse file's map")[504]
        elif problem is None and kind not in _REGULAR:
            problem = f"is of the unknown type {kind!r}"
        if kind != b"5" and not (kind in _REGULAR and name.endswith("/") and size == 0):  # v7 directories
            yield _Member(name, 0 if kind in _WITHOUT_DATA else size, source.start, problem)
        source.start, here, long_name = source.offset, {}, ""
    if here or long_name:
        raise _Damage("the archive ends after an extended header, without its member")


def _header(source: _Source) -> bytes:
    """The next header block, its checksum tested; empty after the two zero blocks that close an archive."""
    at = source.offset
    header = source.read(BLOCK)
    if not header:
        if at == 0:
            raise _Damage("empty file, not a tar")
        raise _Damage(f"the shard ends at byte {at} without its two closing zero blocks: cut off, or never finished")
    if len(header) < BLOCK:
        raise _Damage(f"the shard is cut off at byte {source.offset}, inside a header")
    if not any(header):
        if source.read(BLOCK) != bytes(BLOCK):
            raise _Damage(f"the zero block at byte {at} is not followed by a second one, as at an archive's end")
        return b""
    if header[:2] == b"\x1f\x8b":
        raise _Damage(f"there is gzip data at byte {at}; unpack the shard with gunzip")
    stored = header[148:156]
    expected = [sum(view) - sum(view[148:156]) + 8 * 32 for view in (memoryview(header), memoryview(header).cast("b"))]
    if _number(stored) not in expected:  # unsigned as POSIX has it, signed as old Suns wrote it
        raise _Damage(f"the block at byte {at} is no tar header: its checksum is wrong")
    return header


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _number(digits: bytes) -> int:
    """Octal, or base 256 where the first bit is set."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    text = digits.partition(b"\0")[0].strip(b" ")
    if text.strip(b"01234567"):
        raise _Damage(f"a header has {digits!r} where a number belongs")
    return int(text or b"0", 8)


def _decimal(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise _Damage(f"an extended header has {text[:20]!r} where a number belongs")
    return int(text)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _ustar_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name  # GNU keeps times there


def _pax_records(data: bytes) -> dict[str, str]:
    """Records of "length keyword=value\\n", the length counting itself."""
    records, at, data = {}, 0, data.rstrip(b"\0")
    while at < len(data):
        digits = data[at : at + 20].partition(b" ")[0].decode("latin-1")
        record = data[at + len(digits) + 1 : at + _decimal(digits)]
        keyword, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n":
            raise _Damage("an extended header is damaged")
        records[_text(keyword)] = value.decode("utf-8", "surrogateescape")
        at += _decimal(digits)
    return records


def _is_url(name: str) -> bool:
    return re.match(r"([A-Za-z][\w+.-]*::)*[A-Za-z][\w+.-]*://", name) is not None


def _path(url: str) -> str:
    return re.split("[?#]", url)[0] if url.startswith(("http://", "https://")) else url


def _place(shard: str) -> str:
    return shard if _is_url(shard) else os.path.realpath(shard)


def _unreadable(url: str, error: Exception) -> ShardError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return ShardError(f"{url}: {reason}; see that the shard is there and may be read, then start again")


@contextmanager
def _open(url: str) -> Iterator[IO[bytes]]:
    try:
        opener = fsspec.open(url, "rb") if _is_url(url) else None  # must outlive its stream
        stream = opener.open() if opener else open(url, "rb")  # noqa: SIM115 - closed below
    except Exception as error:  # as in _Source.read
        raise _unreadable(url, error) from error
    with stream:
        yield stream


def _expand_one(spec: str) -> list[str]:
    if not spec.strip():
        raise UsageError("shards: a name is empty; name a .tar, a folder, a glob or a brace pattern")
    if spec.strip().lower().startswith("pipe:"):
        raise UsageError(f"shards: {spec!r} would run a command; name a file or a URL that fsspec opens, such as s3://")
    if _is_url(spec):
        _check_protocols(spec)
    try:
        names = list(braceexpand.braceexpand(spec)) if "{" in spec and not _is_there(spec) else [spec]
    except ValueError as error:
        raise UsageError(f"shards: {spec!r} is no brace pattern: {error}; write it like {{0000..0012}}") from error
    found = [_matches(name) for name in names]
    missing = [name for name, shards in zip(names, found, strict=True) if not shards]
    if missing:
        which = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
        of = f" ({len(missing)} of the {len(names)} in {spec})" if len(names) > 1 else ""
        raise UsageError(f"shards: no such file: {which}{of}; correct the name, or make the shards first")
    return [shard for shards in found for shard in shards]


def _check_protocols(url: str) -> None:
    for protocol in re.findall(r"(?:^|::)([A-Za-z][\w+.-]*)(?=::|://)", url):
        try:
            fsspec.get_filesystem_class(protocol)
        except (ValueError, ImportError) as error:
            raise UsageError(f"shards: {url} cannot be opened: {error}") from error


def _is_there(name: str) -> bool:
    if not _is_url(name):
        return os.path.exists(name)
    files, path = fsspec.core.url_to_fs(name)
    return bool(files.exists(path))


def _matches(name: str) -> list[str]:
    """One file, the tars of a folder, or what a glob finds; nothing where a file is missing."""
    is_url = _is_url(name)
    lists = not name.startswith(("http://", "https://")) and "::" not in name  # the web's ? is no glob
    try:
        files, path = fsspec.core.url_to_fs(name) if is_url else (fsspec.filesystem("file"), name)
        if files.isfile(path):
            shards = [name]
        elif lists and (files.isdir(path) or any(character in path for character in "*?[")):
            pattern = os.path.join(glob.escape(path), "*.tar") if files.isdir(path) else path
            found = files.glob(pattern) if is_url else glob.glob(pattern, recursive=True)
            shards = sorted(files.unstrip_protocol(one) if is_url else one for one in found)
            if not shards:
                raise UsageError(f"shards: there is no {pattern}; name a folder or a pattern that has shards")
        else:
            shards = []
    except UsageError:
        raise
    except Exception as error:  # as in _Source.read
        raise UsageError(
            f"shards: {name} cannot be looked up: {error}; check the address and its credentials"
        ) from error
    for shard in shards:
        if not _path(shard).endswith(".tar"):
            raise UsageError(f"shards: {shard} does not end in .tar; unpack .tar.gz with gunzip, leave other files out")
    return shards
