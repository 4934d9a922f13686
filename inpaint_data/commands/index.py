"""inpaint-data index: the index of image shards, or the sidecars of a cache of plain tars."""

from pathlib import Path

from inpaint_data.commands.outcome import Outcome
from inpaint_data.errors import ShardError, UsageError
from inpaint_data.latent_cache.format import CACHE_FILE, has_sidecars, is_cache
from inpaint_data.latent_cache.indexing import index_cache
from inpaint_data.pipeline.image_indexing import Indexed, index_shards
from inpaint_data.shards.reading import CACHED, Sample, locate_samples
from inpaint_data.shards.stores import is_url, local_path


def run(source: str, vae: str | None = None, out: str | None = None) -> Outcome:
    """Write the index of image shards, with which training begins at once, or a cache's sidecars that are missing.

    Args:
        source: image shards (a brace pattern, a glob, a folder, a URL), or the folder with the tars of a cache
        vae: of a cache, the autoencoder that made the latents; needed where there is no cache.json
        out: of image shards, the index's path or URL where it cannot lie beside them, as on a web server; training is
            told by loading: {index: FILE}
    """
    if _is_of_cache(source):
        if out is not None:
            raise UsageError(f"out: {source} is a cache, whose sidecars lie beside its tars; leave it out")
        indexed = index_cache(source, vae)
        return Outcome(f"indexed {', '.join(indexed)}" if indexed else "every shard has its sidecar")
    if vae is not None:
        raise UsageError(f"vae: {source} has image shards, which no autoencoder made; leave it out")
    return Outcome(_table(index_shards(source, out)))


def _is_of_cache(source: str) -> bool:
    """Whether a folder has the tars of a cache: by its `cache.json`; here by a sidecar, or a tar's first sample too."""
    try:
        if is_cache(source):
            return True
    except ShardError as error:
        raise UsageError(f"source: {error}".replace(f"/{CACHE_FILE}:", ":", 1), ("source",)) from None
    folder = local_path(source)
    if is_url(source) or not folder.is_dir():
        return False
    if has_sidecars(folder):
        return True
    return any(map(_has_cached, sorted(folder.glob("*.tar"))[:1]))


def _has_cached(tar: Path) -> bool:
    first = next((item for item in locate_samples(str(tar)) if isinstance(item, Sample)), None)
    return first is not None and CACHED in first.members


def _table(indexed: Indexed) -> str:
    faults = [(entry, fault) for entry in indexed.entries for fault in entry.faults]
    lines = [
        ("shards", f"{len(indexed.new)} indexed, {len(indexed.entries) - len(indexed.new)} were already there"),
        ("samples", str(sum(map(len, indexed.entries)))),
        ("index", indexed.place),
    ]
    if faults:
        entry, fault = faults[0]
        lines.append(("unusable", f"{len(faults)}; the first: {entry.name}, sample {fault.key!r}: {fault.reason}"))
    return "\n".join(f"  {name:<9} {text}" for name, text in lines)
