"""The tar format: members one after another, every header checked, and damage told from an end.

Formats: v7, ustar, pax and GNU, as POSIX.1 (pax) and GNU tar's manual (Basic Tar Format) lay them out.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any

from inpaint_data.shards.store_errors import unreadable

BLOCK = 512
RECORD = 20 * BLOCK
MAX_EXTENDED_HEADER_BYTES = 2**20
PIECE = 2**24  # read at once: a header may claim more bytes than there are, and than there is memory
MAGIC = 257  # where a header says "ustar"
REGULAR = (b"0", b"\0", b"7")  # typeflags: today's, the one before ustar, "contiguous"
SPARSE = "GNU.sparse"  # of what pax says, all keywords that begin so: the name of the file
_ASCII = bytes(range(128))
WITHOUT_DATA = {
    b"1": "is a hard link; pack the file itself",
    b"2": "is a symbolic link; pack with tar --dereference",
    b"3": "is a device",
    b"4": "is a device",
    b"6": "is a named pipe",
}


class Damage(Exception):
    """The tar cannot be followed any further."""


@dataclass
class TarStream:
    """A stream that knows where it is and reads all that is asked for, or tells that it cannot.

    `size` is that of the whole file; where it is known, skipped bytes are not read.
    """

    url: str
    stream: IO[bytes]
    size: int | None = None
    sha256: Any = field(default_factory=hashlib.sha256)  # of all that was read
    offset: int = 0
    start: int = 0  # where the member that is being read began: its first header
    trusted: int = 0  # the end of the last header whose checksum was right
    recent: list[bytes] = field(default_factory=list)  # what was read since, as far as it may hide headers

    def read(self, count: int) -> bytes:
        """`count` bytes, fewer only at the end of the file."""
        pieces = []
        while count > 0:
            try:
                piece = self.stream.read(min(count, PIECE))
            except MemoryError:
                raise
            except Exception as error:  # those of aiohttp, botocore … are not an OSError
                raise unreadable(self.url, error) from None
            if not piece:
                break
            pieces.append(piece)
            self.sha256.update(piece)
            count -= len(piece)
            self.offset += len(piece)
            self.recent.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def exactly(self, count: int, part: str) -> bytes:
        data = self.read(count)
        if len(data) < count:
            raise Damage(f"the shard is cut off at byte {self.offset}, inside {part}")
        return data

    def skip(self, count: int, part: str) -> None:
        if self.size is not None and self.offset + count <= self.size:
            self.stream.seek(count, os.SEEK_CUR)
            self.offset += count
            return
        while count > 0:
            count -= len(self.exactly(min(count, 2**20), part))
            del self.recent[:-2]

    def skip_to_end(self) -> int:
        while self.read(2**20):
            self.recent.clear()
        return self.offset

    def trust(self) -> None:
        """The header that was read last is whole."""
        self.trusted = self.offset
        self.recent.clear()

    def names_to_end(self) -> list[str]:
        """Read on to the end and name the members whose headers are still whole, wherever they lie.

        Those too that were taken for data: bytes may be missing in a member, which then reaches over the next ones.
        """
        names: list[str] = []
        long_name = ""
        if self.size is not None:  # it was not read but skipped
            self.stream.seek(self.trusted)
            self.recent, self.offset = [], self.trusted
        window, piece = b"".join(self.recent), b"-"
        while piece:
            self.recent.clear()
            piece = self.read(2**20)
            window += piece
            searched = 0
            while (at := window.find(b"ustar", searched + MAGIC)) >= 0:
                header = window[at - MAGIC : at - MAGIC + BLOCK]
                size = min(_number(header[124:136]) or 0, MAX_EXTENDED_HEADER_BYTES) if header[156:157] in b"Lx" else 0
                if len(window) < at - MAGIC + BLOCK + size and piece:
                    break  # more is needed of this one
                if len(header) == BLOCK and has_checksum(header):
                    data = window[at - MAGIC + BLOCK : at - MAGIC + BLOCK + size]
                    if header[156:157] == b"L":
                        long_name = _text(data)
                    elif header[156:157] == b"x":
                        with suppress(Damage):
                            long_name = _pax_records(data).get("path", "")
                    elif header[156:157] in REGULAR:
                        names.append(long_name or _ustar_name(header))
                        long_name = ""
                searched = at - MAGIC + 1
            window = window[at - MAGIC if at >= 0 else max(searched, len(window) - BLOCK) :]
        return names

    def expect_only_zeros(self) -> None:
        """Writers pad an archive to a full record; more than that is a hole that merely looks like its end."""
        while piece := self.read(2**20):
            del self.recent[:-1]
            if piece.strip(b"\0"):
                raise Damage(f"there is data after the zero blocks at byte {self.start}: a hole, or tars joined by cat")
        # Writers pad to 20 blocks, or to the power of two that tar -b was told.
        records = (RECORD, 1 if self.offset % RECORD == 0 else min(self.offset & -self.offset, 2**20))
        if all(self.offset > -(-(self.start + 2 * BLOCK) // record) * record for record in records):
            raise Damage(f"all bytes from {self.start} on are zero, more than a tar's padding: an unfinished download")


@dataclass(frozen=True)
class Member:
    """A file in a tar. `problem` says why it cannot be used, after its name; None where nothing is wrong."""

    name: str
    size: int
    start: int
    problem: str | None

    @property
    def padded(self) -> int:
        return _padded(self.size)

    def __str__(self) -> str:
        return f"member {self.name[:1000]!r}"  # a stranger's name may have a million letters


def members_of_tar(source: TarStream) -> Iterator[Member]:
    """Every file of the archive up to its two closing zero blocks; whoever asks for the next has read its data."""
    global_pax: dict[str, str] = {}  # holds for all members that follow
    member_pax: dict[str, str] | None = None  # holds for the next member alone
    long_name = ""
    has_long_link = False
    while header := _header(source):
        kind, size = header[156:157], _number(header[124:136])
        if size is None:
            raise Damage(f"the header before byte {source.offset} has no size")
        if kind in (b"x", b"X", b"g", b"L", b"K"):
            if size > MAX_EXTENDED_HEADER_BYTES:
                raise Damage(f"the extended header before byte {source.offset} claims {size} bytes")
            data = source.exactly(_padded(size), "an extended header")[:size]
            if kind == b"L":
                long_name = _text(data)
                if not long_name:
                    raise Damage(f"the extended header before byte {source.offset} has no name in it")
            elif kind == b"g":
                global_pax |= _pax_records(data)
            elif kind == b"K":
                has_long_link = True  # the target of the link that must follow
            else:
                member_pax = _pax_records(data)
            continue
        # The blocks of these names have no checksum, but writers keep a part of them in the header, which has one.
        if long_name and not long_name.encode("utf-8", "surrogateescape").startswith(header[:100].rstrip(b"\0")):
            raise Damage(f"the long name before byte {source.offset} is not that of its member")
        own_pax = member_pax or {}
        if "path" in own_pax and not _is_part(_ustar_name(header), own_pax["path"]):
            raise Damage(f"the extended header before byte {source.offset} does not name its member")
        if has_long_link and kind not in (b"1", b"2"):
            raise Damage(f"the long target before byte {source.offset} is not followed by a link")
        pax = global_pax | own_pax
        name = pax.get(SPARSE) or pax.get("path") or long_name or _ustar_name(header)
        if pax.get("size"):
            size = _decimal(pax["size"])
        problem = WITHOUT_DATA.get(kind)
        if kind == b"S" or SPARSE in pax:
            problem = "is a sparse file; pack with tar without --sparse"
            is_continued = kind == b"S" and header[482]
            while is_continued:
                is_continued = source.exactly(BLOCK, "a sparse file's map")[504]
        elif problem is None and kind not in REGULAR:
            problem = f"is of the unknown type {kind!r}"
        if kind != b"5" and not (kind in REGULAR and name.endswith("/") and size == 0):  # v7 directories
            yield Member(name, 0 if kind in WITHOUT_DATA else size, source.start, problem)
        source.start = source.offset
        member_pax, long_name, has_long_link = None, "", False
    if member_pax is not None or long_name:
        raise Damage("the archive ends after an extended header, without its member")


def _header(source: TarStream) -> bytes:
    """The next header block, its checksum tested; empty after the two zero blocks that close an archive."""
    at = source.offset
    header = source.read(BLOCK)
    if not header:
        if at == 0:
            raise Damage("empty file, not a tar")
        raise Damage(f"the shard ends at byte {at} without its two closing zero blocks: cut off, or never finished")
    if len(header) < BLOCK:
        raise Damage(f"the shard is cut off at byte {source.offset}, inside a header")
    if not any(header):
        if source.read(BLOCK) != bytes(BLOCK):
            raise Damage(f"the zero block at byte {at} is not followed by a second one, as at an archive's end")
        return b""
    if header[:2] == b"\x1f\x8b":
        raise Damage(f"there is gzip data at byte {at}; unpack the shard with gunzip")
    if not has_checksum(header):
        raise Damage(f"the block at byte {at} is not a tar header: its checksum is wrong")
    source.trust()
    return header


def has_checksum(header: bytes) -> bool:
    """True if a header's checksum is right: unsigned as POSIX has it, or signed as old Suns wrote it."""
    stored = _number(header[148:156])
    summed = header[:148] + b" " * 8 + header[156:]
    total = sum(summed)
    return stored is not None and stored in (total, total - 256 * len(summed.translate(None, _ASCII)))


def stored_size(members: Iterable[bytes]) -> int:
    """The bytes that members take in a tar, headers and padding included."""
    return sum(BLOCK + _padded(len(data)) for data in members)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _number(digits: bytes) -> int | None:
    """Octal, or base 256 where the first bit is set; None where it is neither."""
    if digits[0] == 0x80:
        return int.from_bytes(digits[1:], "big")
    text = digits.partition(b"\0")[0].strip(b" ")
    return None if text.strip(b"01234567") else int(text or b"0", 8)


def _decimal(text: str) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise Damage(f"an extended header has {text[:20]!r} where a number belongs")
    return int(text)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _ustar_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if prefix and header[257:263] == b"ustar\0" else name  # GNU keeps times there


def _is_part(short: str, name: str) -> bool:
    """True if the ASCII of `short` stands in `name` in its order: writers cut a name, or replace what is not ASCII."""
    rest = iter(name)
    return all(character in rest for character in short if character.isascii() and character != "?")


def _is_one_byte_off(word: bytes, other: bytes) -> bool:
    return len(word) == len(other) and sum(a != b for a, b in zip(word, other, strict=True)) == 1


def _pax_records(data: bytes) -> dict[str, str]:
    """The path, the size and whether the file is sparse, of records "length keyword=value\\n", each counting itself.

    All else is passed over, but not what would be one of these if a byte were not changed.
    """
    records: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits = data[at : at + 20].partition(b" ")[0].decode("latin-1")
        record = data[at + len(digits) + 1 : at + _decimal(digits)]
        keyword, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n":
            raise Damage("an extended header is damaged")
        if keyword in (b"path", b"size"):
            records[keyword.decode()] = value.decode("utf-8", "surrogateescape")
        elif keyword.startswith(b"GNU.sparse"):
            records[SPARSE] = records.get(SPARSE, "")
            if keyword == b"GNU.sparse.name":
                records[SPARSE] = value.decode("utf-8", "surrogateescape")
        elif any(_is_one_byte_off(keyword, known) for known in (b"path", b"size")):
            raise Damage(f"an extended header sets {_text(keyword)!r}, which nothing knows")
        at += _decimal(digits)
    return records
