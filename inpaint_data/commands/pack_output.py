"""Where packed shards go: a folder, or whatever fsspec writes to."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inpaint_data.durable import NewFile, name_of_leftover, write_file
from inpaint_data.errors import UsageError
from inpaint_data.shards.reading import Sample, read_shard
from inpaint_data.shards.store_writing import put_bytes, put_file
from inpaint_data.shards.stores import find, is_there, is_url, place_of, within
from inpaint_data.shards.writing import tar_writer
from inpaint_data.shown import shown


class Output:
    """The shards of one prefix, `photos-000000.tar` and so on.

    In a folder none appears before all are written; a store gets each one whole as soon as it is full, since a disk
    may not hold them all.
    """

    def __init__(self, out: str, prefix: str) -> None:
        self.out, self.prefix = place_of(out), prefix
        self.is_remote = is_url(self.out)
        if self.out.startswith(("http://", "https://")):
            raise UsageError(f"out: nothing can be written to {shown(out)}; name a folder or a bucket, such as s3://")

    @property
    def folder(self) -> Path | None:
        return None if self.is_remote else Path(self.out)

    def existing(self) -> list[str]:
        """The shards of this prefix that are there, in their order."""
        paths = (find(self.out) or []) if self.is_remote else list(map(str, Path(self.out).glob("*.tar")))
        return sorted(path for path in paths if self._number(path) is not None)

    def samples(self, shards: list[str]) -> Iterator[Sample]:
        """The samples of shards that are there.

        Raises:
            UsageError: one is damaged.
        """
        for shard in shards:
            for item in read_shard(shard):
                if isinstance(item, Sample):
                    yield item
                elif problem := getattr(item, "reason", None):
                    raise UsageError(f"{shard}: {problem}; nothing can be appended to damaged shards, pack them anew")

    @contextmanager
    def writing(self, existing: list[str]) -> Iterator["Writer"]:
        """Writes new shards behind those that are there; all of them or, where an error leaves the block, none.

        Raises:
            UsageError: the folder cannot be written to, or the disk is full.
            ShardError: the store cannot be written to.
        """
        first = 1 + max((self._number(path) or 0 for path in existing), default=-1)
        try:
            if not self.is_remote:
                Path(self.out).mkdir(parents=True, exist_ok=True)
                self._clear_leftovers()
                with _cleared(Writer(self, Path(self.out), first)) as writer:
                    yield writer
                return
            with (
                tempfile.TemporaryDirectory(prefix="inpaint_data-pack-") as folder,
                _cleared(Writer(self, Path(folder), first)) as writer,
            ):
                yield writer
        except OSError as error:
            raise UsageError(
                f"{error.filename or self.out}: {error.strerror or error}; fix it and pack again"
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """Put a small text beside the shards, in place of an older one; no text is no file."""
        if not self.is_remote:
            path = Path(self.out) / name
            try:
                write_file(path, text.encode()) if text else path.unlink(missing_ok=True)
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror}; the shards are packed, this list is not") from None
        elif text or is_there(within(self.out, name)):
            put_bytes(within(self.out, name), text.encode())

    def _clear_leftovers(self) -> None:
        """Remove what a killed run of this prefix was writing."""
        for path in Path(self.out).glob(".*"):
            name = name_of_leftover(path.name)
            if name and self._number(name) is not None:
                path.unlink(missing_ok=True)

    def _number(self, path: str) -> int | None:
        match = re.fullmatch(rf"{re.escape(self.prefix)}-([0-9]{{6,}})\.tar", re.split(r"[/\\]", path)[-1])
        return int(match[1]) if match else None


@contextmanager
def _cleared(writer: "Writer") -> Iterator["Writer"]:
    try:
        yield writer
        writer.close()
    finally:
        writer.drop()


class Writer:
    """The shards that are being written."""

    def __init__(self, output: Output, folder: Path, first: int) -> None:
        self._output, self._folder, self._first = output, folder, first
        self._files: list[NewFile] = []
        self._tar: Any = None
        self.shards: list[str] = []
        self.samples = 0  # in the shard that is open

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Write a sample to the open shard, the same bytes every time."""
        if self._tar is None:
            name = f"{self._output.prefix}-{self._first + len(self.shards):06d}.tar"
            self._files.append(NewFile(self._folder / name))
            self.shards.append(within(self._output.out, name) if self._output.is_remote else str(self._folder / name))
            self._tar = tar_writer(self._files[-1])
        self._tar.write({"__key__": key, **members})
        self.samples += 1

    def end_shard(self) -> None:
        """The open shard is full; the next sample begins another."""
        if self._tar is None:
            return
        tar, self._tar, self.samples = self._tar, None, 0
        tar.close()
        file = self._files[-1]
        file.sync()
        if self._output.is_remote:
            put_file(file.temporary, self.shards[-1])
            file.drop()
            self._files.clear()

    def close(self) -> None:
        """Give all shards their names."""
        self.end_shard()
        for file in self._files:
            file.publish()

    def drop(self) -> None:
        """Leave no trace of what was not published."""
        if self._tar is not None:
            tar, self._tar = self._tar, None
            with suppress(OSError):  # the disk may be full
                tar.close()
        for file in self._files:
            file.drop()
