"""Repair of a cache: remove damaged shards, so that the next job makes them again."""

from pathlib import Path
from typing import Any

from inpaint_data.errors import CacheError, UsageError
from inpaint_data.latent_cache.format import (
    CACHE_FILE,
    Sidecar,
    committed,
    read_cache_file,
    sidecar_path,
    tar_path,
    write_cache_file,
)
from inpaint_data.latent_cache.lock import locked
from inpaint_data.latent_cache.verify import verify_files
from inpaint_data.shards.stores import local_root


def repair_cache(root: str | Path) -> list[str]:
    """Remove the shards that `verify_cache` finds damaged, and those that no sidecar commits.

    The next run of the cache command makes just these again. Files that are not part of the cache stay.

    Returns:
        The names of the removed files.

    Raises:
        UsageError: there is no folder at `root`.
        CacheError: another job writes to it, `cache.json` is missing or damaged, or a file cannot be removed.
    """
    root = local_root(root)
    if not root.is_dir():
        raise UsageError(f"{root}: no such folder; name the folder of a latent cache")
    settings = _settings(root)
    with locked(root):
        files = [Path(problem.file) for problem in verify_files(root).problems]
        damaged = {file.stem for file in files if file.suffix in (".tar", ".json")}
        uncommitted = {path.stem for path in root.glob("*.tar") if not sidecar_path(root, path.stem).exists()}
        # The sidecar first: without it the tar does not count, should this stop in between.
        to_remove = [
            path
            for stem in sorted(damaged | uncommitted)
            if tar_path(root, stem).is_file() or _is_sidecar(sidecar_path(root, stem))
            for path in (sidecar_path(root, stem), tar_path(root, stem))
            if path.name != CACHE_FILE and path.is_file()
        ]
        try:
            if to_remove or Path(CACHE_FILE) in files:
                write_cache_file(root, settings, None)
            for path in to_remove:
                path.unlink()
        except OSError as error:
            raise CacheError(f"{error.filename or root}: {error.strerror}; fix that and repair again") from None
    return [path.name for path in to_remove]


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
