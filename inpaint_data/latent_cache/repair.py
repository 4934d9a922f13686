"""Repair of a cache: remove damaged shards, so that the next job makes them again."""

from pathlib import Path
from typing import Any

from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.folder import CacheFolder, opened
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    Sidecar,
    committed,
    read_cache_file,
    sidecar_path,
    write_cache_file,
)
from inpaint_data.latent_cache.lock import locked
from inpaint_data.latent_cache.merged_file import index_again
from inpaint_data.latent_cache.verify import verify_folder


def repair_cache(root: str | Path) -> list[str]:
    """Remove the shards that `verify_cache` finds damaged, and those that no sidecar commits.

    The next run of the cache command makes just these again. Files that are not part of the cache stay.

    Returns:
        The names of the removed files.

    Raises:
        UsageError: there is no folder at `root`.
        CacheError: another job writes to it, `cache.json` is missing or damaged, or a file cannot be removed.
    """
    with opened(root) as folder:
        if not folder.is_there():
            raise UsageError(f"{folder.name}: no such folder; name the folder of a latent cache")
        settings = _settings(folder.root)
        with locked(folder.place):
            removed = _without_damage(folder, settings)
            index_again(folder)
            return removed


def _without_damage(folder: CacheFolder, settings: dict[str, Any]) -> list[str]:
    """Remove what is damaged; the caller holds the lock. Returns the names."""
    files = [Path(problem.file) for problem in verify_folder(folder).problems]
    names, root = folder.names(), folder.root
    damaged = {file.stem for file in files if file.suffix in (".tar", ".json")}
    tars = [name for name in names if name.endswith(".tar")]
    uncommitted = {Path(name).stem for name in tars if not sidecar_path(root, Path(name).stem).exists()}
    # The sidecar first: without it the tar does not count, should this stop in between.
    to_remove = [
        name
        for stem in sorted(damaged | uncommitted)
        if f"{stem}.tar" in tars or _is_sidecar(sidecar_path(root, stem))
        for name in (f"{stem}.json", f"{stem}.tar")
        if name != CACHE_FILE and name in names
    ]
    try:
        if to_remove or Path(CACHE_FILE) in files:
            write_cache_file(folder, settings, None)
        for name in to_remove:
            folder.remove(name)
    except OSError as error:
        raise CacheError(f"{error.filename or folder.name}: {error.strerror}; fix that and repair again") from None
    return to_remove


def _is_sidecar(path: Path) -> bool:
    """False for a JSON file of the user's own."""
    try:
        Sidecar.read(path)
    except CacheError:
        return False
    return True


def _settings(root: Path) -> dict[str, Any]:
    """Those in `cache.json`. Raises CacheError if they are damaged, since good shards would then seem bad."""
    try:
        content = read_cache_file(root)
    except CacheError as error:
        raise CacheError(f"{error}; nothing is removed while its settings are unknown") from None
    fingerprints = {Sidecar.read(path).fingerprint for path in committed(root) if _is_sidecar(path)}
    if fingerprints and content.fingerprint not in fingerprints:
        raise CacheError(
            f"{root / CACHE_FILE}: no shard was made with its settings, so it is not this cache's; put back a copy"
        )
    return content.settings_json
