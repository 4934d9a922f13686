"""Verification of the files of a cache: each is whole, and they agree."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from inpaint_data.durable import TEMPORARY
from inpaint_data.errors import CacheError, ShardError, UsageError
from inpaint_data.latent_cache.folder import CacheFolder, opened
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    CacheFile,
    Sidecar,
    committed,
    read_cache_file,
    shards_sha256,
    totals,
)
from inpaint_data.latent_cache.index import NOWHERE, Place
from inpaint_data.latent_cache.members import MEMBERS
from inpaint_data.latent_cache.record import RECORD
from inpaint_data.latent_cache.sample_check import SampleCheck
from inpaint_data.latent_cache.text_members import EMPTY_PROMPT
from inpaint_data.pictures.geometry import Size
from inpaint_data.shards.tar import Damage, TarStream, members_of_tar
from inpaint_data.shown import shown


@dataclass(frozen=True)
class Problem:
    """A problem of a file in the cache, by its name there, or of an input shard, by its path or URL."""

    file: str
    key: str | None
    problem: str

    def __str__(self) -> str:
        place = self.file if self.key is None else f"{self.file}, sample {self.key!r}"
        return shown(f"{place}: {self.problem}")


@dataclass(frozen=True)
class Verification:
    """The result of a verification; `totals` are those of the readable sidecars (shards, samples, …)."""

    totals: dict[str, int]
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def table(self) -> str:
        """For a person to read, without the problems."""
        lines = [", ".join(f"{number} {name}" for name, number in self.totals.items()), *self.notes]
        if self.problems:
            lines.append(
                f"{len(self.problems)} problems; `inpaint-data repair` removes the damaged shards, "
                "and the cache command makes them again"
            )
        return "\n".join(map(shown, lines))

    def to_json(self) -> str:
        return shown(json.dumps({"ok": self.ok, **asdict(self)}))


def verify_files(root: str | Path) -> Verification:
    """Check every file of a cache, and every member of every shard, against sidecars and settings.

    Raises:
        UsageError: there is no cache at `root`, not even a damaged one.
    """
    with opened(root) as folder:
        return verify_folder(folder)


def verify_folder(folder: CacheFolder) -> Verification:
    """As `verify_files`."""
    root = folder.root
    if not folder.is_there():
        raise UsageError(f"{folder.name}: no such folder, or it cannot be read; name the folder of a latent cache")
    problems: list[Problem] = []
    content = _cache_file(root, problems)
    check = _sample_check(content, problems)
    counts, stems = dict.fromkeys(totals([]), 0), set()
    sha256_by_shard: dict[str, str] = {}
    for path in committed(root):
        stems.add(path.stem)
        try:
            sidecar = Sidecar.read(path)
        except CacheError as error:
            problems.append(Problem(path.name, None, str(error).removeprefix(f"{path}: ")))
            continue
        counts = {name: counts[name] + number for name, number in totals([sidecar]).items()}
        sha256_by_shard[sidecar.shard] = sidecar.sha256
        if content is not None and sidecar.fingerprint != content.fingerprint:
            problems.append(Problem(path.name, None, f"its shard was made with other settings than {CACHE_FILE} says"))
        elif check is not None and sidecar.variants != check.expected.variants:
            problems.append(Problem(path.name, None, f"says {sidecar.variants} variants, {CACHE_FILE} another number"))
        problems += _shard_problems(folder, f"{path.stem}.tar", sidecar, check)
    if content is None and not counts["shards"]:
        raise UsageError(
            f"{folder.name}: has neither a whole {CACHE_FILE} nor a whole sidecar, so this is not a latent cache"
        )

    under_way = content is not None and content.totals is None
    problems += _leftovers(folder, stems, under_way)
    if content is not None and check is not None and not under_way and content.settings.text is not None:
        problems += _empty_prompt(root, content.settings.text.members)
    if content is not None and content.totals not in (None, counts):
        problems.append(Problem(CACHE_FILE, None, f"counts {content.totals}, but the whole sidecars {counts}"))
    elif content is not None and content.shards_sha256 not in (None, shards_sha256(sha256_by_shard)):
        other = "was written for other shards than are here: a tar and its sidecar were put in place of some"
        problems.append(Problem(CACHE_FILE, None, f"{other}; run the cache command, it makes those again"))
    notes = ["not finished: a job is under way or was stopped; the cache command resumes it"] if under_way else []
    return Verification(counts, problems, notes)


def _cache_file(root: Path, problems: list[Problem]) -> CacheFile | None:
    path = root / CACHE_FILE
    if not path.is_file():
        problems.append(
            Problem(CACHE_FILE, None, "missing; run the cache command with the same settings, it writes this file anew")
        )
        return None
    try:
        content = read_cache_file(root)
        if path.read_bytes() != content.to_bytes():  # so a byte without meaning was changed
            problems.append(Problem(CACHE_FILE, None, "was changed after it was written, though its settings hold"))
    except (CacheError, OSError, RecursionError) as error:
        problems.append(Problem(CACHE_FILE, None, str(error).removeprefix(f"{path}: ")))
        return None
    return content


def _sample_check(content: CacheFile | None, problems: list[Problem]) -> SampleCheck | None:
    """The check of samples; None if the settings are missing or damaged."""
    if content is None:
        return None
    try:
        return SampleCheck(content.settings.expected)
    except CacheError as error:
        problems.append(Problem(CACHE_FILE, None, str(error)))
        return None


def _shard_problems(folder: CacheFolder, name: str, sidecar: Sidecar, check: SampleCheck | None) -> Iterator[Problem]:
    """Read the tar itself, and compare with the index."""
    try:
        with folder.reading(name) as path, path.open("rb") as file:
            source = TarStream(str(path), file)
            yield from _member_problems(name, source, sidecar, check)
    except FileNotFoundError:
        yield Problem(name, None, "missing")
        return
    except (OSError, ShardError) as error:
        yield Problem(name, None, f"cannot be read: {error}")
        return
    size, sha256 = sidecar.output["size"], sidecar.output["sha256"]
    if source.offset != size:
        yield Problem(name, None, f"{source.offset} bytes, its sidecar says {size}")
    elif source.sha256.hexdigest() != sha256:
        yield Problem(name, None, "its bytes are not those that were written")


def _member_problems(tar: str, source: TarStream, sidecar: Sidecar, check: SampleCheck | None) -> Iterator[Problem]:
    expected = _layout(sidecar)
    own_members: dict[str | None, set[str]] = {}  # of each sample, those that are not carried
    for sample, name, _ in expected.values():
        own_members.setdefault(sample, set()).update({name} & MEMBERS.keys())
    sizes: dict[str | None, Size] = {
        key: (height, width)
        for key, (height, width) in zip(sidecar.keys, sidecar.index.target_sizes.tolist(), strict=True)
    }
    rows: dict[str | None, int] = {key: row for row, key in enumerate(sidecar.keys)}
    key: str | None = None  # of the sample that is being read
    data: dict[str, bytes] = {}
    try:
        for member in members_of_tar(source):
            owner, name, place = expected.pop(member.name, (None, "", NOWHERE))
            offset = source.offset
            as_indexed = place[:2] == (offset, member.size) and not member.problem
            if owner is None:
                yield Problem(tar, None, f"{member} at byte {source.offset} is not in the index, or comes again")
            elif not as_indexed:
                moved = (
                    f"at byte {offset} with {member.size} bytes, where the index says {place.offset} and {place.size}"
                )
                yield Problem(tar, owner, f"{member} {member.problem or moved}")
            if owner != key:
                key, data = owner, {}
            if as_indexed:
                content = source.exactly(member.size, str(member))
                source.skip(member.padded - member.size, str(member))
                if Place.of(offset, content) != place:
                    yield Problem(tar, owner, f"{member} does not have the checksum that the index says")
                if name in MEMBERS:
                    data[name] = content
            else:
                source.skip(member.padded, str(member))
            if check is not None and name in data and data.keys() == own_members[key]:
                problems = list(check.problems(data))
                yield from (Problem(tar, key, problem) for problem in problems)
                if not problems and not _agrees(sidecar, rows[key], data[RECORD]):
                    yield Problem(tar, key, f"its {RECORD} is another one than its sidecar says")
                if key in sizes and sizes[key] != check.size:
                    yield Problem(tar, key, f"its target_size is {check.size}, its sidecar says {sizes[key]}")
        source.expect_only_zeros()
    except Damage as damage:
        yield Problem(tar, key, f"{damage}; all that follows is lost")
        source.skip_to_end()
        return
    missing: dict[str, list[str]] = {}
    for owner, name, _ in expected.values():
        missing.setdefault(owner, []).append(name)
    yield from (Problem(tar, owner, f"the tar lacks its {', '.join(names)}") for owner, names in missing.items())


def _agrees(sidecar: Sidecar, row: int, record: bytes) -> bool:
    """Whether the columns of records, where there are any, say what the sample's own does."""
    return sidecar.records is None or sidecar.records.agrees(row, json.loads(record))


def _layout(sidecar: Sidecar) -> dict[str, tuple[str, str, Place]]:
    """Name in the tar -> key, member name and place, by the index."""
    return {
        f"{key}.{name}": (key, name, place)
        for row, key in enumerate(sidecar.keys)
        for name, place in sidecar.index.of_row(row).items()
    }


def _empty_prompt(root: Path, names: Sequence[str]) -> Iterator[Problem]:
    """The embeddings of the empty prompt that are not there, or are no arrays."""
    for name in names:
        try:
            np.load(root / EMPTY_PROMPT / name, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            yield Problem(f"{EMPTY_PROMPT}/{name}", None, f"cannot be read ({error}); run the cache command again")


def _leftovers(folder: CacheFolder, stems: set[str], under_way: bool) -> Iterator[Problem]:
    """Tars without a sidecar, and foreign files. Names that begin with a dot belong: locks, stamps, temporary files."""
    for name in sorted(folder.names()):
        stem, suffix = Path(name).stem, Path(name).suffix
        if suffix == ".tar" and folder.tar_size(name) is not None:
            if stem not in stems and not under_way:
                yield Problem(name, None, f"no sidecar commits this shard, {stem}.json is missing")
        elif not (name.startswith(".") or name.endswith(TEMPORARY) or suffix == ".json" or name == EMPTY_PROMPT):
            yield Problem(name, None, "does not belong in a cache; move it elsewhere")
