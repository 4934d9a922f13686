"""What is in a cache: names, bytes of each member, the sidecar and the fingerprint."""

import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inpaint_data.errors import CacheError, SampleError, UsageError
from inpaint_data.masks.soft_border import to_levels
from inpaint_data.pictures.images import decode_image, encode_png

FORMAT = 1
LATENTS = "latents.npy"
MASKED_LATENTS = "masked_latents.npy"
MASK = "mask.pbm"
SOFT_MASK = "mask.png"
RECORD = "inpaint.json"
TARGET_LATENTS = "target_latents.npy"
REQUIRED = frozenset({LATENTS, RECORD})  # and the masks, see `masks_member`
RESERVED = REQUIRED | {MASK, MASKED_LATENTS, TARGET_LATENTS}
SIZES = ("original_size", "resized_size", "crop_top_left", "target_size")
CACHE_FILE = "cache.json"
TEMPORARY = ".tmp"


def npy_bytes(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def pbm_bytes(masks: npt.NDArray[np.bool_]) -> bytes:
    """(K, H, W) bool, True = repaint -> a binary PBM of K pictures stacked downwards, repaint white.

    In P4 a set bit is black, so the bits are the complement; rows are padded to whole bytes.
    """
    count, height, width = masks.shape
    header = f"P4\n{width} {count * height}\n".encode()
    return header + np.packbits(~masks.reshape(count * height, width), axis=1).tobytes()


def read_pbm(data: bytes | memoryview, count: int) -> npt.NDArray[np.bool_]:
    """The (K, H, W) bool masks in what `pbm_bytes` made, K = `count`."""
    data = bytes(data)
    magic, size, pixels = data.split(b"\n", 2)
    width, rows = map(int, size.split())
    packed = np.frombuffer(pixels, np.uint8)
    if magic != b"P4" or rows % count or packed.size != rows * ((width + 7) // 8):
        raise CacheError(f"{MASK}: not a P4 picture of {count} masks")
    bits = np.unpackbits(packed.reshape(rows, -1), axis=1, count=width)
    masks: npt.NDArray[np.bool_] = (bits == 0).reshape(count, rows // count, width)
    return masks


def masks_member(names: Collection[str]) -> str:
    """Which of a sample's members holds its masks: `mask.png` where it has no `mask.pbm` beside it.

    In a cache of hard masks `mask.png` is a member that was carried along.
    """
    return SOFT_MASK if SOFT_MASK in names and MASK not in names else MASK


def png_bytes(levels: npt.NDArray[np.uint8]) -> bytes:
    """(K, H, W) uint8, 255 = repaint -> a grey PNG of K pictures stacked downwards."""
    return encode_png(levels.reshape(-1, levels.shape[-1]))


def read_png(data: bytes | memoryview, count: int) -> npt.NDArray[np.uint8]:
    """The (K, H, W) uint8 masks in what `png_bytes` made, K = `count`.

    Raises:
        SampleError: no PNG, damaged, or too large a picture.
        CacheError: another kind of picture.
    """
    data = bytes(data)
    # Bit depth and colour type in its header: 8 bits, grey.
    if data[:4] != b"\x89PNG" or data[24:26] != b"\x08\x00":
        raise CacheError(f"{SOFT_MASK}: not a grey PNG of 8 bits")
    levels = decode_image(data)[..., 0]
    if len(levels) % count:
        raise CacheError(f"{SOFT_MASK}: not a picture of {count} masks")
    return levels.reshape(count, -1, levels.shape[-1])


def json_bytes(value: Any) -> bytes:
    """The one way JSON is written here: sorted and compact, so that equal values are equal bytes."""
    return (
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8",
            "backslashreplace",  # a name that is no UTF-8 comes as lone surrogates, which JSON can escape
        )
        + b"\n"
    )


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash of everything that decides the values in a cache."""
    return hashlib.sha256(json_bytes(settings)).hexdigest()


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """The fields that differ, one line each, with the old and the new value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        names = sorted({*old, *new})
        return [
            line
            for each in names
            for line in differences(old.get(each), new.get(each), f"{name}.{each}" if name else str(each))
        ]
    return [] if old == new else [f"{name}: the cache has {json.dumps(old)}, this run {json.dumps(new)}"]


@dataclass(frozen=True)
class Quarantined:
    """A sample, or an extent [offset, end) of bytes, that did not come through."""

    key: str | None
    reason: str
    offset: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Sidecar:
    """What stands beside a shard and commits it. `index` has, for each member name, two columns with a number for
    each sample: byte offset and size in the tar, -1 where the sample has no such member. `target_size` has the columns
    height and width. What `filtered` lists was left out on purpose."""

    shard: str
    fingerprint: str
    input: dict[str, Any]  # size, sha256
    output: dict[str, Any]  # size, sha256
    variants: int
    keys: list[str]
    index: dict[str, dict[str, list[int]]]
    target_size: dict[str, list[int]]
    quarantined: list[Quarantined] = field(default_factory=list)
    filtered: list[Quarantined] = field(default_factory=list)
    format: int = FORMAT

    @property
    def lost_its_end(self) -> bool:
        """Whether the input was damaged so that all behind some byte was lost."""
        return any(entry.end is not None and entry.end == self.input["size"] for entry in self.quarantined)

    def to_bytes(self) -> bytes:
        """As it stands on disk. `sha256` is that of the rest, so that an edited sidecar is told from a written one."""
        content = asdict(self) | {"samples": len(self.keys)}
        return json_bytes(content | {"sha256": hashlib.sha256(json_bytes(content)).hexdigest()})

    @classmethod
    def read(cls, path: Path) -> "Sidecar":
        """Raises CacheError when the file is no sidecar of this format, or not as it was written."""
        try:
            data = path.read_bytes()
            fields = json.loads(data)
            if fields.get("format") != FORMAT:
                raise ValueError(f"it says format {fields.get('format')}")
            del fields["samples"], fields["sha256"]
            for name in ("quarantined", "filtered"):
                fields[name] = [Quarantined(**entry) for entry in fields[name]]
            sidecar = cls(**fields)
            if sidecar.to_bytes() != data:
                raise ValueError("it was changed after it was written")
            if wrong := list(_disagreements(path, sidecar)):
                raise ValueError("; ".join(wrong))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CacheError(
                f"{path}: not a sidecar of cache format {FORMAT} ({error}); delete it to redo the shard"
            ) from None
        return sidecar


def _disagreements(path: Path, sidecar: Sidecar) -> Iterator[str]:
    """What a sidecar from a stranger may get wrong though its hash is right: it must name its own tar, inside it."""
    if sidecar.shard != f"{path.stem}.tar":
        yield f"it is the sidecar of {sidecar.shard!r}"
    for what, file in (("input", sidecar.input), ("output", sidecar.output)):
        if not (isinstance(file, dict) and _is_count(file.get("size")) and isinstance(file.get("sha256"), str)):
            yield f"its {what} has no size and sha256"
    if not isinstance(sidecar.fingerprint, str):
        yield "its fingerprint is no text"
    if not _is_count(sidecar.variants) or not sidecar.variants:
        yield f"it says {sidecar.variants!r} variants"
    for entry in [*sidecar.quarantined, *sidecar.filtered]:
        extent = (entry.offset, entry.end)
        if not (isinstance(entry.reason, str) and entry.reason):
            yield f"sample {entry.key!r}, which was left out, has no reason"
        if not (isinstance(entry.key, str | None) and (extent == (None, None) or all(map(_is_count, extent)))):
            yield f"its entry {entry.key!r} at {extent} is neither a sample nor an extent"
    keys, index, end = sidecar.keys, sidecar.index, sidecar.output.get("size", 0)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys) and isinstance(index, dict)):
        yield "it has no keys and index"
        return
    sides = sidecar.target_size
    if not (isinstance(sides, dict) and sides.keys() == {"height", "width"}) or not all(
        isinstance(column, list) and len(column) == len(keys) and all(map(_is_count, column))
        for column in sides.values()
    ):
        yield f"its target_size does not have a height and a width for each of {len(keys)} samples"
    if len(set(keys)) < len(keys):
        yield f"its key {next(key for key in keys if keys.count(key) > 1)!r} comes twice"
    own = RESERVED | {masks_member(index)}
    for name in sorted(index.keys() | (REQUIRED | {masks_member(index)} if keys else set())):
        columns = index.get(name)
        if not (isinstance(columns, dict) and columns.keys() == {"offset", "size"}):
            yield f"its index has no offsets and sizes of {name}"
        elif not all(isinstance(column, list) and len(column) == len(keys) for column in columns.values()):
            yield f"its index of {name} does not have an entry for each of {len(keys)} samples"
        else:
            for key, *place in zip(keys, columns["offset"], columns["size"], strict=True):
                absent = place == [-1, -1] and name not in own
                inside = all(map(_is_count, place)) and sum(place) <= end
                if not absent and not inside:
                    yield f"its index says {place} for {name} of sample {key!r}"


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def tar_path(root: Path, stem: str) -> Path:
    return root / f"{stem}.tar"


def sidecar_path(root: Path, stem: str) -> Path:
    return root / f"{stem}.json"


def committed(root: Path) -> list[Path]:
    """The sidecars in a cache, in order."""
    return sorted(path for path in root.glob("*.json") if path.name != CACHE_FILE)


def read_cache_file(root: Path) -> dict[str, Any]:
    """What `cache.json` says.

    Raises:
        CacheError: there is no cache at `root`, or its `cache.json` is damaged or of another format.
    """
    path = root / CACHE_FILE
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; name the one that `inpaint-data cache` wrote to")
    if not path.is_file():
        raise CacheError(
            f"{root}: no {CACHE_FILE} here, so this is no latent cache; make one with `inpaint-data cache`"
        )
    try:
        content = json.loads(path.read_bytes())
        version, settings, _ = content["format"], content["settings"], content["totals"]
        if version == FORMAT and content["fingerprint"] != fingerprint(settings):
            raise ValueError("its settings are not those of its fingerprint")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CacheError(
            f"{path}: damaged ({error}); run the cache command with the same settings, it writes this file anew"
        ) from None
    if version != FORMAT:
        raise CacheError(f"{path}: cache format {version}, but this version reads format {FORMAT}")
    return dict(content)


def totals(sidecars: Sequence[Sidecar]) -> dict[str, int]:
    return {
        "shards": len(sidecars),
        "samples": sum(len(sidecar.keys) for sidecar in sidecars),
        "quarantined": sum(len(sidecar.quarantined) for sidecar in sidecars),
        "filtered": sum(len(sidecar.filtered) for sidecar in sidecars),
        "bytes": sum(int(sidecar.output["size"]) for sidecar in sidecars),
    }


def coverage_of(mask: npt.NDArray[Any]) -> float:
    """The mean of a mask, bool or uint8 levels, where 1 = repaint: of a hard one the share that is repainted."""
    return round(float(mask.mean()) / (1 if mask.dtype == np.bool_ else 255), 6)


def members_of(batch: Mapping[str, Any], row: int, storage: str) -> dict[str, bytes]:
    """Member name -> bytes of one sample of an encoded batch.

    Args:
        batch: a `Batch` of raw moments on the CPU.
        row: which sample.
        storage: "float16" or "float32".

    Raises:
        SampleError: a value too large for `storage`, or a carried member whose name the cache uses itself.
    """
    carried: dict[str, bytes] = batch["carried"][row]
    soft = batch["mask"].is_floating_point()
    taken = sorted((RESERVED | {SOFT_MASK} if soft else RESERVED) & carried.keys())
    if taken:
        raise SampleError(f"it carries a member called {taken[0]}, which the cache uses itself; rename it")
    masks = to_levels(batch["mask"][row]).numpy() if soft else batch["mask"][row].numpy()
    arrays = {LATENTS: batch["latents"][row].numpy()}
    if "masked_latents" in batch:
        masked = batch["masked_latents"][row].numpy()
        arrays[MASKED_LATENTS] = masked.reshape(len(masks), *masked.shape[-3:])
    if "target_latents" in batch:
        arrays[TARGET_LATENTS] = batch["target_latents"][row].numpy()
    members = dict(carried)
    for name, array in arrays.items():
        with np.errstate(over="ignore"):
            stored = array.astype(storage)
        if not np.isfinite(stored).all():
            raise SampleError(f"{name}: {np.abs(array).max():.3g} is too large for {storage}; set storage: float32")
        members[name] = npy_bytes(stored)
    members[SOFT_MASK if soft else MASK] = png_bytes(masks) if soft else pbm_bytes(masks)
    offsets = batch["offset"][row].reshape(-1).tolist()
    members[RECORD] = json_bytes(
        {
            "caption": batch["caption"][row],
            **{name: batch[name][row].tolist() for name in SIZES},
            "flip": bool(batch["flip"][row]),
            "variants": [
                {"offset": offset, "window": window, "generator": generator, "coverage": coverage_of(mask)}
                for offset, window, generator, mask in zip(
                    offsets, batch["window"][row], batch["generator"][row], masks, strict=True
                )
            ],
        }
    )
    return members
