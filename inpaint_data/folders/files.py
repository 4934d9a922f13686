"""The files of a folder: what its system keeps there for itself is passed over, links are followed once."""

import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What pictures are packed under; JPEG XL, JPEG 2000 and cameras' raw files are named as left out.
IMAGES = ("jpg", "jpeg", "png", "webp", "avif", "bmp", "gif", "tif", "tiff", "heic", "heif")
MODELS = frozenset(["safetensors", "ckpt", "pt", "pth", "gguf"])  # beside which tools lay a preview of the same name
LOSSLESS = frozenset(["png", "bmp", "gif", "tif", "tiff"])
UNREAD_IMAGES = frozenset(
    [
        "jxl",
        "jp2",
        "j2k",
        "psd",
        "tga",
        "exr",
        "hdr",
        "dds",
        "dng",
        "cr2",
        "cr3",
        "nef",
        "arw",
        "orf",
        "rw2",
        "raf",
        "svg",
        "ppm",
        "pgm",
        "pnm",
    ]
)
# Names that Synology, QNAP, Windows, macOS and Unix give what is not the user's. Whatever begins with a dot is hidden.
_OF_THE_SYSTEM = frozenset(
    (
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "$recycle.bin",
        "system volume information",
        "__macosx",
        "lost+found",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
    )
)


@dataclass(frozen=True, order=True)
class File:
    """A file, and its name: the path below the folder, in Unicode's composed form (macOS writes the other)."""

    name: str
    path: Path = field(compare=False)
    identity: tuple[int, int] | None = field(default=None, compare=False)  # of the bytes, by whatever name

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]

    @property
    def stem(self) -> str:
        return self.name.rpartition("/")[2].rpartition(".")[0]

    @property
    def extension(self) -> str:
        """Lower case, without its dot; "" where there is none. JPEGs have more of them than readers know."""
        own = self.name.rpartition("/")[2].rpartition(".")[2].lower() if self.stem else ""
        return "jpg" if own in ("jfif", "jpe") else own


@dataclass(frozen=True)
class LeftOut:
    """A file that is in no sample, and why: `is_bad` where it should have been in one."""

    name: str
    reason: str
    is_bad: bool = True


class Spellings:
    """Names of files, each found by itself, or else by its letters in either case where no other has them."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._near = defaultdict[str, list[str]](list)
        for name in self._names:
            self._near[name.lower()].append(name)

    def of(self, name: str) -> str:
        """The name that is there; the given one where there is none, or where several are as near."""
        near = self._near.get(name.lower(), ())
        return near[0] if name not in self._names and len(near) == 1 else name


@dataclass
class Walk:
    """What there is in a folder and below it, by name."""

    files: list[File] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)  # hidden, or of the system
    again: list[tuple[str, str]] = field(default_factory=list)  # a linked folder, and what it is read as


def walk(root: Path, without: Path | None = None) -> Walk:
    """Every file of a folder and of those below it.

    Linked folders are read like others, each folder once: behind a loop, or a link to what is read already, there is
    nothing new. Real folders come first, so a link never decides what another file is called.

    Args:
        root: the folder.
        without: a folder that may lie in it and does not belong to it.
    """
    walked = Walk()
    if without is not None and (not without.is_dir() or without.samefile(root)):
        without = None
    seen = {} if without is None else {_identity(without): ""}
    real, links = [(root, "")], list[tuple[Path, str]]()
    while real or links:
        folder, name = real.pop() if real else links.pop()
        if (identity := _identity(folder)) in seen:
            if without is None or identity != _identity(without):
                walked.again.append((name, seen[identity]))
                walked.left_out.append(LeftOut(f"{name}/", "a link to a folder that is read already", is_bad=False))
            continue
        seen[identity] = name
        _read(folder, name, walked, real, links)
        links.sort(key=lambda link: link[1], reverse=True)
    walked.files.sort(key=lambda file: (file.name, str(file.path)))
    return walked


def files_below(root: Path) -> Iterator[str]:
    """The names of the files that `walk` gives, one by one: a folder of shards may have very many.

    A folder that is called like a shard is among them, so that whoever opens it names it.
    """
    seen = set[tuple[int, int]]()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (identity := _identity(Path(folder))) in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(filter(_is_the_users, folders))
        for name in sorted(filter(_is_the_users, [*names, *(each for each in folders if each.endswith(".tar"))])):
            yield os.path.relpath(os.path.join(folder, name), root)


def first_of(root: Path, extensions: Collection[str]) -> str | None:
    """The first name of `files_below` with one of these extensions; None where there is none."""
    found = (name for name in files_below(root) if File(name, root).extension in extensions)
    return next((composed(name) for name in found if (root / name).is_file()), None)


def _is_the_users(name: str) -> bool:
    """Whether a name is neither hidden nor the system's own."""
    return not name.startswith(".") and composed(name).lower() not in _OF_THE_SYSTEM


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _read(folder: Path, name: str, walked: Walk, real: list[tuple[Path, str]], links: list[tuple[Path, str]]) -> None:
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except OSError as error:
        walked.left_out.append(LeftOut(f"{name}/", f"a folder that cannot be read ({error.strerror})"))
        return
    for entry in entries:
        own = composed(entry.name)
        inner = f"{name}/{own}" if name else own
        if not _is_the_users(entry.name):
            walked.passed_over.append(inner)
            continue
        try:
            status = entry.stat()
        except OSError as error:
            reason = "a link to nothing" if entry.is_symlink() else f"it cannot be read ({error.strerror})"
            walked.left_out.append(LeftOut(inner, reason))
            continue
        if stat.S_ISDIR(status.st_mode):
            (links if entry.is_symlink() else real).append((Path(entry.path), inner))
        elif stat.S_ISREG(status.st_mode):
            walked.files.append(File(inner, Path(entry.path), (status.st_dev, status.st_ino)))
        else:
            walked.left_out.append(LeftOut(inner, "neither a file nor a folder", is_bad=False))


def composed(name: str) -> str:
    """A name in the form that Linux and Windows write it in: é as one character."""
    return unicodedata.normalize("NFC", name)


def shard_prefix(folder: Path) -> str:
    """What the shards of a folder are called: its name, without what patterns and shells take for their own."""
    name = folder.resolve().name.removesuffix(".parquet") if folder.is_file() else folder.resolve().name
    safe = re.sub(r"[^\w.-]+", "_", composed(name)).strip("_.-")
    return safe.encode()[:100].decode(errors="ignore") or "images"
