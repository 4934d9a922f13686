"""The files of a cache beside its shards: `cache.json` and the sidecars."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.encodings import json_bytes
from inpaint_data.latent_cache.folder import CacheFolder
from inpaint_data.latent_cache.index import ShardIndex, is_count
from inpaint_data.latent_cache.record_columns import RecordColumns
from inpaint_data.shards.stores import folder_of, is_url, local_path, read_if_there, within

if TYPE_CHECKING:
    from inpaint_data.latent_cache.settings import CacheSettings

FORMAT = 1
CACHE_FILE = "cache.json"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash of everything that decides the values in a cache."""
    return hashlib.sha256(json_bytes(settings)).hexdigest()


@dataclass(frozen=True)
class CacheFile:
    """The content of `cache.json`. The fingerprint covers `settings_json`.

    `totals` and `shards_sha256`, a hash over the sidecars, are None while a job is under way.
    """

    fingerprint: str
    settings_json: dict[str, Any]
    totals: dict[str, int] | None
    shards_sha256: str | None

    @cached_property
    def settings(self) -> "CacheSettings":
        """Raises CacheError if they are not those of a cache."""
        # Here, since reading a cache for training needs none of it.
        from inpaint_data.latent_cache.settings import CacheSettings

        return CacheSettings.from_json(self.settings_json)

    def to_bytes(self) -> bytes:
        """The bytes of the file, indented for people to read."""
        content = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "settings": self.settings_json,
            "totals": self.totals,
            "shards_sha256": self.shards_sha256,
        }
        return json.dumps(content, sort_keys=True, indent=1).encode() + b"\n"


def read_cache_file(root: Path) -> CacheFile:
    """The content of the `cache.json` at `root`.

    Raises:
        UsageError: no such folder.
        CacheError: there is no cache, or its `cache.json` is damaged or of another format.
    """
    path = root / CACHE_FILE
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; name the one that `inpaint-data cache` wrote to")
    if not path.is_file():
        raise CacheError(
            missing_cache_file(str(root), any(sidecar.with_suffix(".tar").exists() for sidecar in committed(root)))
        )
    try:
        content = json.loads(path.read_bytes())
        version, settings = content["format"], content["settings"]
        counts, of_shards = content["totals"], content["shards_sha256"]
        if version == FORMAT and content["fingerprint"] != fingerprint(settings):
            raise ValueError("its settings are not those of its fingerprint")
        if version == FORMAT and counts is not None and not _are_totals(counts, of_shards):
            raise ValueError("its totals are not those of a cache")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CacheError(
            f"{path}: damaged ({_reason(error)}); run the cache command with the same settings, which writes it anew"
        ) from None
    if version != FORMAT:
        raise CacheError(f"{path}: cache format {version}, but this version reads format {FORMAT}")
    return CacheFile(content["fingerprint"], settings, counts, of_shards)


def _are_totals(counts: Any, of_shards: Any) -> bool:
    return counts.keys() == totals([]).keys() and all(map(is_count, counts.values())) and isinstance(of_shards, str)


def is_cache(root: str | Path) -> bool:
    """True if a folder or a URL has a `cache.json`, whatever else is there.

    At a URL it must look like one too: many web servers answer whatever they are asked for.
    """
    if not is_url(str(root)):
        return (local_path(root) / CACHE_FILE).is_file()
    if re.split("[?#]", str(root))[0].endswith(".tar"):
        return False  # a shard, which is not worth a question to its store
    data = read_if_there(within(str(root), CACHE_FILE))
    try:
        return data is not None and {"format", "fingerprint"} <= json.loads(data).keys()
    except (ValueError, AttributeError, RecursionError):
        return False


def has_sidecars(folder: str | Path) -> bool:
    """True if a local folder has the sidecar of a cache: an `x.json` beside an `x.tar`, with the fields of one."""
    for path in committed(Path(folder)):
        if path.with_suffix(".tar").exists():
            try:
                return bool({"format", "fingerprint", "index"} <= json.loads(path.read_bytes()).keys())
            except (OSError, ValueError, AttributeError, RecursionError):
                continue
    return False


def is_cache_or_lost(root: str | Path) -> bool:
    """True if a folder or a URL is a cache.

    Raises:
        CacheError: it has sidecars, and has lost its `cache.json`.
    """
    if is_cache(root):
        return True
    if has_sidecars(root):
        raise CacheError(missing_cache_file(str(root), sidecars=True))
    return False


def folders_of(shards: Sequence[str]) -> list[str]:
    """The folders or URLs that shards lie in, each once."""
    return sorted({folder_of(shard) for shard in shards})


def missing_cache_file(root: str, sidecars: bool) -> str:
    """The error for a folder without a `cache.json`."""
    if sidecars:
        return (
            f"{root}: has the tars and sidecars of a cache, but no {CACHE_FILE}; run the cache command with the "
            "same settings, it writes the file anew"
        )
    return f"{root}: no {CACHE_FILE} here, so this is not a latent cache; make one with `inpaint-data cache`"


def write_cache_file(folder: CacheFolder, settings: Mapping[str, Any], sidecars: "Sequence[Sidecar] | None") -> None:
    """Write `cache.json`. Without sidecars a job is under way, or was when it died."""
    counts, of_shards = None, None
    if sidecars is not None:
        counts = totals(sidecars)
        of_shards = shards_sha256({sidecar.shard: sidecar.sha256 for sidecar in sidecars})
    folder.write(CACHE_FILE, CacheFile(fingerprint(settings), dict(settings), counts, of_shards).to_bytes())


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The fields that differ, one line each, with the old and the new value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted({*old, *new})
        return [
            line
            for key in names
            for line in differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if old == new else [f"{name}: the cache has {json.dumps(old)}, this run {json.dumps(new)}"]


@dataclass(frozen=True)
class Quarantined:
    """A sample, or an extent [offset, end) of bytes, that is not in the cache."""

    key: str | None
    reason: str
    offset: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Sidecar:
    """The file beside a shard that commits it. The samples in `filtered` were left out on purpose.

    `records` is None of a shard without samples, and of one that was made before sidecars had them.
    """

    shard: str
    fingerprint: str
    input: dict[str, Any]  # name, size and sha256 of the input shard
    output: dict[str, Any]  # size and sha256 of the tar
    variants: int
    made_with: dict[str, Any]  # what moves the last bits; {} where nobody knows
    index: ShardIndex
    quarantined: list[Quarantined] = field(default_factory=list)
    filtered: list[Quarantined] = field(default_factory=list)
    records: RecordColumns | None = None

    @cached_property
    def sha256(self) -> str:
        """The hash of all fields, so that an edit is noticed."""
        return hashlib.sha256(json_bytes(self._content())).hexdigest()

    @property
    def keys(self) -> list[str]:
        return self.index.keys

    @property
    def lost_its_end(self) -> bool:
        """True if the input was damaged so that all behind some byte was lost."""
        return any(entry.end is not None and entry.end == self.input["size"] for entry in self.quarantined)

    def to_bytes(self) -> bytes:
        return json_bytes(self._content() | {"sha256": self.sha256})

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "shard": self.shard,
            "fingerprint": self.fingerprint,
            "input": self.input,
            "output": self.output,
            "variants": self.variants,
            "made_with": self.made_with,
            "samples": len(self.keys),
            **self.index.to_json(),
            "quarantined": [asdict(entry) for entry in self.quarantined],
            "filtered": [asdict(entry) for entry in self.filtered],
        } | ({} if self.records is None else {"records": self.records.to_json()})

    @classmethod
    def read(cls, path: Path) -> "Sidecar":
        """Raises CacheError when the file is not a sidecar of this format, or not as it was written."""
        try:
            data = path.read_bytes()
            fields = json.loads(data)
            if fields.get("format") != FORMAT:
                raise ValueError(f"it says format {fields.get('format')}")
            if problems := list(_problems(path, fields)):
                raise ValueError("; ".join(problems))
            sidecar = cls(
                shard=fields["shard"],
                fingerprint=fields["fingerprint"],
                input=fields["input"],
                output=fields["output"],
                variants=fields["variants"],
                made_with=fields["made_with"],
                index=ShardIndex.from_json(fields, fields["output"]["size"]),
                quarantined=[Quarantined(**entry) for entry in fields["quarantined"]],
                filtered=[Quarantined(**entry) for entry in fields["filtered"]],
                records=RecordColumns.from_json(fields["records"], len(fields["keys"]), fields["variants"])
                if "records" in fields
                else None,
            )
            if sidecar.to_bytes() != data:
                raise ValueError("it was changed after it was written")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CacheError(
                f"{path}: not a sidecar of cache format {FORMAT} ({_reason(error)}); delete it to redo the shard"
            ) from None
        return sidecar


def _problems(path: Path, fields: Mapping[str, Any]) -> Iterator[str]:
    """What can be wrong in a sidecar from a stranger though its hash is right."""
    if fields["shard"] != f"{path.stem}.tar":
        yield f"it is the sidecar of {fields['shard']!r}"
    for name in ("input", "output"):
        file = fields[name]
        if not (isinstance(file, dict) and is_count(file.get("size")) and _is_sha256(file.get("sha256"), name)):
            yield f"its {name} has no size and sha256"
    if not isinstance(fields["fingerprint"], str):
        yield "its fingerprint is not a text"
    if not isinstance(fields["made_with"], dict):
        yield "its made_with is not an object"
    if not is_count(fields["variants"]) or not fields["variants"]:
        yield f"it says {fields['variants']!r} variants"
    for entry in [*fields["quarantined"], *fields["filtered"]]:
        extent = (entry["offset"], entry["end"])
        if not (isinstance(entry["reason"], str) and entry["reason"]):
            yield f"sample {entry['key']!r}, which was left out, has no reason"
        if not (isinstance(entry["key"], str | None) and (extent == (None, None) or all(map(is_count, extent)))):
            yield f"its entry {entry['key']!r} at {extent} is neither a sample nor an extent"


def _is_sha256(value: object, name: str) -> bool:
    """True if it is 64 hex digits, which may become the name of a file; or "", of an input that is not known."""
    unknown = name == "input" and value == ""
    return unknown or (isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None)


def tar_path(root: Path, stem: str) -> Path:
    return root / f"{stem}.tar"


def sidecar_path(root: Path, stem: str) -> Path:
    return root / f"{stem}.json"


def committed(root: Path) -> list[Path]:
    """The sidecars in a cache, in order."""
    return sorted(path for path in root.glob("*.json") if path.name != CACHE_FILE)


def shards_sha256(sha256_by_shard: Mapping[str, str]) -> str:
    """A hash over the sidecars' own: no other shard can take the place of one of them unnoticed."""
    lines = [f"{sha256_by_shard[shard]} {shard}\n" for shard in sorted(sha256_by_shard)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def totals(sidecars: Sequence[Sidecar]) -> dict[str, int]:
    return {
        "shards": len(sidecars),
        "samples": sum(len(sidecar.keys) for sidecar in sidecars),
        "quarantined": sum(len(sidecar.quarantined) for sidecar in sidecars),
        "filtered": sum(len(sidecar.filtered) for sidecar in sidecars),
        "bytes": sum(int(sidecar.output["size"]) for sidecar in sidecars),
    }


def _reason(error: Exception) -> str:
    """What is wrong with a file, without the words that Python has for a value of another kind than expected."""
    return str(error) if isinstance(error, OSError | ValueError) else "it lacks something, or has it in another form"
