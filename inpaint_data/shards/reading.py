"""Reading of tar shards into samples: strict, nothing executed.

What went in comes out: every member of a shard belongs to a `Sample` or to a `Fault` that names it. Only directories
and what macOS and pax leave behind (`._*`, `.DS_Store`, `PaxHeader*/`) are skipped.

A tar has a checksum for each header but none for the data and no list of its members. So bytes changed inside a
member are not found here, nor members cut out whole, nor a tail of zeros that is no longer than a tar's own padding.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from inpaint_data.errors import SampleError
from inpaint_data.shards.mask_keys import MaskKeys
from inpaint_data.shards.naming import ShardIdentity, shard_size
from inpaint_data.shards.stores import is_remote
from inpaint_data.shards.streams import open_stream
from inpaint_data.shards.tar import BLOCK, Damage, Member, TarStream, members_of_tar
from inpaint_data.shown import shown

MAX_SAMPLE_BYTES = 2**30  # of all its members; larger samples are not read into memory
MAX_REASON = 2000  # characters
MAX_NAME_BYTES = 4096  # of a member: the longest path that systems take
USUAL_IMAGES = ("jpg", "jpeg", "png", "webp")
IMAGE_EXTENSIONS = (*USUAL_IMAGES, "avif", "bmp", "gif", "tif", "tiff", "heic", "heif")
MASK_MEMBER = re.compile(rf"mask\.(?:([0-9]+)\.)?(?:{'|'.join(IMAGE_EXTENSIONS)})")
CACHED = "inpaint.json"  # the member that every sample of a latent cache has

_LEFTOVER = re.compile(r"(.*/)?(\._[^/]*|\.DS_Store)$|(.*/)?PaxHeaders?(\.\d+)?/")
_COMPANION = re.compile(rf"txt|json|{MASK_MEMBER.pattern}")  # what a sample has beside its image
_WORD = re.compile("[a-z_-]+")  # that names what an image is of, as in input.jpg: a part of a key is a number
_KEY_AND_EXTENSION = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)  # webdataset splits at the first dot


@dataclass(frozen=True)
class Sample:
    """The members of one key: extension (all after the first dot, lower case) -> bytes. The key keeps its folder."""

    shard: str
    key: str
    members: dict[str, bytes]
    extent: tuple[int, int] = (0, 0)  # the bytes [offset, end) of the shard that it fills
    offsets: dict[str, int] = field(default_factory=dict)  # of each member's bytes in the shard
    sizes: dict[str, int] = field(default_factory=dict)  # of each member, in bytes


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
        # It may quote names, and whatever a library says.
        object.__setattr__(self, "reason", shown(self.reason[:MAX_REASON]))


@dataclass(frozen=True)
class ShardEnd:
    """The end of a shard, after its last sample: which bytes it was, and how many keys it had, samples and faults.

    Where there is a `problem`, the rest of the shard cannot be read, and its bytes are unknown.
    """

    shard: str
    identity: ShardIdentity
    keys: int
    decode_seconds: float = 0.0  # what decoding its samples took, all threads together; known behind `examples`
    problem: str | None = None


@dataclass(frozen=True)
class ShardAnew:
    """The shard was replaced while it was read. What came of it counts for nothing; the new one follows."""

    shard: str


def read_shard(url: str, copy: str | None = None) -> Iterator[Sample | Fault | ShardEnd]:
    """A shard's samples in their order, streamed, one in memory at a time.

    At damage (a cut, a changed header, a missing end) all that follows is lost: a Fault covers it up to the file's
    end, from the start of the sample that was being read, since nobody knows whether that one was complete. Behind it
    comes a Fault for each key that headers in the lost part still name.
    A member that cannot be taken (a link, a second `jpg` …) makes its whole sample a Fault: without its mask, say,
    a sample would be another sample.

    The last item, once all of it was read, is its `ShardEnd`.

    Args:
        url: of the shard, or its path.
        copy: the path of a copy of it, which is read in its stead.

    Raises:
        ShardError: the file cannot be opened or read.
    """
    keys = 0
    with open_stream(url if copy is None else copy) as stream:
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
        size = None if is_remote(path) else shard_size(path)
        yield from _samples(TarStream(shard or path, stream, size=size), located=True)


def read_sample(shard: str, data: bytes) -> Sample | Fault:
    """The sample that fills an extent, given the bytes of that extent."""
    ends = bytes(2 * BLOCK)  # with these it is a tar of its own, checked like any
    return next(_samples(TarStream(shard, io.BytesIO(data + ends))))


def _samples(source: TarStream, located: bool = False) -> Iterator[Sample | Fault]:
    url = source.url
    group: _Group | None = None
    keys: set[str] = set()
    masks = MaskKeys()
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
                    yield from group.close(url, member.start, masks)
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
            yield from group.close(url, source.start, masks)
    except Damage as damage:
        start, open_key = (group.start, group.key) if group else (source.start, None)
        lost_keys = [match[1] for name in source.names_to_end() if (match := _KEY_AND_EXTENSION.fullmatch(name))]
        yield Fault(url, open_key, str(damage), start, source.offset)
        for key in dict.fromkeys(lost_keys):
            if key not in keys:
                yield Fault(url, key, f"lies behind the damage: {damage}", start, source.offset)


def image_member(sample: Sample, named: str | None = None) -> str:
    """The extension of a sample's image: `named`, or else the only one that is an image's: one of the usual, beside
    which a tiff or a heic is a member like any other.

    Raises:
        SampleError: it has none or several.
    """
    images = [extension for extension in sample.members if extension in ([named] if named else USUAL_IMAGES)]
    if not images and not named:
        images = [extension for extension in sample.members if extension in IMAGE_EXTENSIONS]
    if len(images) == 1:
        return images[0]
    names = ", ".join(sorted(sample.members))
    if images:
        raise SampleError(f"several images: it has {names}; keep one, or name it with image: {images[0]}")
    if CACHED in sample.members:
        raise SampleError("it is a sample of a latent cache, not an image; read it with cached(), or as a cache")
    others = named_otherwise(sample)
    if others and named is None:
        raise SampleError(
            f"no image: it has {names}; name it with image: {' or '.join(others[:3])} (a key ends at the first dot)"
        )
    raise SampleError(f"no image: it has {names}, and not {named or ', '.join(IMAGE_EXTENSIONS)}")


def named_otherwise(sample: Sample) -> list[str]:
    """The members that are images by their extension, and by their name neither the sample's image nor its mask."""
    return sorted(filter(_stem_of_image, sample.members))


def _stem_of_image(name: str) -> str:
    """What stands before the extension of an image with dots in its name, that is not a mask; "" of all others."""
    stem, _, extension = name.rpartition(".")
    return stem if extension in IMAGE_EXTENSIONS and not MASK_MEMBER.fullmatch(name) else ""


@dataclass
class _Group:
    """The sample that is being read."""

    key: str
    start: int
    reason: str | None = None
    members: dict[str, bytes] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
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
            self.offsets[extension], self.sizes[extension] = at, member.size
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

    def close(self, url: str, end: int, masks: MaskKeys) -> Iterator[Sample | Fault]:
        keys = self._keys_with_dots()
        if not self.reason and CACHED not in self.members and (owner := masks.owner_of(self.key)):
            self.reason = (
                f"it is called as the mask of {owner!r} in the same shard is; make it a member of that, "
                f"{owner}.mask.png, or rename it if it is an image"
            )
        if self.reason:
            yield Fault(url, self.key, self.reason, self.start, end)
        elif keys:
            for key in keys:
                reason = "a key cannot contain dots, webdataset splits at the first one and would merge it with others"
                yield Fault(url, key, f"{reason}; rename it and pack the shard again", self.start, end)
        else:
            yield Sample(url, self.key, self.members, (self.start, end), self.offsets, self.sizes)

    def _keys_with_dots(self) -> list[str]:
        """The keys that were meant, where the members are plainly those of several samples: `v2.jpg` with `v2.txt`, or
        images of which none has a plain name, unless two of three signs say that they are members: they are named by a
        word, have a plain caption or mask beside them, and none of their own.

        A lone `depth.png` beside `jpg` is a member like any other, and so is `input.jpg` beside `txt`, and all in a
        latent cache, whose samples need no image."""
        if CACHED in self.members:
            return []
        stems = {stem.removesuffix(".mask") for name in self.members if (stem := _stem_of_image(name))}
        parts = [(name[: dot.start()], name[dot.end() :]) for name in self.members for dot in re.finditer(r"\.", name)]
        has_companions = any(stem in stems and _COMPANION.fullmatch(rest) for stem, rest in parts)
        is_plain = any(name in IMAGE_EXTENSIONS for name in self.members)
        signs = (
            all(map(_WORD.fullmatch, stems)),
            any(_COMPANION.fullmatch(name) for name in self.members),
            not has_companions,
        )
        if not stems or (not has_companions if is_plain else sum(signs) >= 2):
            return []
        keys = [f"{self.key}.{stem}" for stem in sorted(stems)]
        return [self.key, *keys] if is_plain else keys


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
